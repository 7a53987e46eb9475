"""The objects below one address of an object store. The only file that knows obstore.

Credentials and endpoint come from the environment alone: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
AWS_ENDPOINT_URL and what else obstore reads there for S3, Google Cloud Storage and Azure.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from dropgen.errors import ConfigError, ResourceError

# obstore's own bound on a request is 30 s, too little for a large chunk over a slow line, and its retries go on for
# minutes; http is what somebody wrote who set AWS_ENDPOINT_URL to it.
CLIENT: dict[str, Any] = {"timeout": timedelta(minutes=5), "connect_timeout": timedelta(seconds=5), "allow_http": True}
RETRY: dict[str, Any] = {"max_retries": 6, "retry_timeout": timedelta(minutes=1)}
ELSEWHERE = ("file:", "memory:")  # obstore takes these too; a folder needs no bucket, and memory outlives no process
REFUSED = re.compile(r"status code: 40[13]\b")  # a listing raises no error of its own for it, as a request does
ANSWER = re.compile(r"<Code>(?P<code>[^<]+)</Code>.*?<Message>(?P<message>[^<]+)</Message>", re.DOTALL)


@dataclass(frozen=True)
class Object:
    """What a listing says of one object.

    Attributes:
        name: Relative to the bucket's address.
        bytes: Its size.
        age: Seconds since it was written.
    """

    name: str
    bytes: int
    age: float


class Bucket:
    """Whole objects by name; an object is seen whole or not at all.

    Every method raises ResourceError where the store cannot be reached or refuses, and ConfigError where
    the address is none or the extra `dropgen[s3]` is not installed.

    Args:
        url: `s3://bucket/prefix`, or any other address that obstore takes.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, name: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        with self._talking("read from") as client:
            try:
                return bytes(client.get(name).bytes())
            except FileNotFoundError:
                return None

    def download(self, name: str, path: Path) -> bool:
        """Writes an object into a file; False where there is none."""
        with self._talking("read from") as client:
            try:
                found = client.get(name)
            except FileNotFoundError:
                return False
            with path.open("wb") as file:
                for part in found:
                    file.write(part)
        return True

    def put(self, name: str, content: bytes | Path) -> None:
        """Writes an object in place of any older one."""
        with self._talking("write to") as client:
            client.put(name, content)

    def create(self, name: str, content: bytes) -> bool:
        """Writes an object where there is none yet; False where there is one, also one that this very call wrote.

        The latter happens where the store's first answer was lost and the request was sent again.
        """
        from obstore.exceptions import AlreadyExistsError

        with self._talking("write to") as client:
            try:
                client.put(name, content, mode="create")
            except AlreadyExistsError:
                return False
            except NotImplementedError as error:  # what obstore raises where they are switched off
                raise ResourceError(
                    f"cannot write to {self.url}: its conditional writes are switched off, and without them one writer "
                    "could undo another's work; unset AWS_CONDITIONAL_PUT, or use a store that has them"
                ) from error
        return True

    def age(self, name: str) -> float | None:
        """Seconds since an object was written; None where there is none."""
        with self._talking("read from") as client:
            try:
                return _age(client.head(name))
            except FileNotFoundError:
                return None

    def objects(self, prefix: str) -> list[Object]:
        """All objects below `prefix/`."""
        with self._talking("list") as client:
            return [Object(meta["path"], meta["size"], _age(meta)) for page in client.list(prefix) for meta in page]

    def level(self, prefix: str) -> tuple[list[str], list[str]]:
        """Names of the objects right below `prefix/`, and of the prefixes there."""
        with self._talking("list") as client:
            found = client.list_with_delimiter(prefix)
            return [meta["path"] for meta in found["objects"]], list(found["common_prefixes"])

    def delete(self, names: Sequence[str]) -> None:
        """Deletes objects, whether there or not."""
        if names:
            with self._talking("delete from") as client:
                client.delete(list(names))

    @contextmanager
    def _talking(self, doing: str) -> Iterator[Any]:
        client = _connect(self.url)
        from obstore.exceptions import BaseError

        try:
            yield client
        except (BaseError, FileNotFoundError) as error:  # what is not found here is the bucket
            raise _refusal(doing, self.url, error) from error


@functools.cache
def _connect(url: str) -> Any:
    """One client per process, which has seen its bucket answer: later a missing one would look like missing objects."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        raise ConfigError(f"the store {url} needs the package obstore: pip install 'dropgen[s3]'") from None
    connect: Any = from_url  # its types differ from store to store
    try:
        client = None if url.startswith(ELSEWHERE) else connect(url, client_options=CLIENT, retry_config=RETRY)
    except (BaseError, ValueError):
        client = None
    if client is None:
        raise ConfigError(
            f"features.store = {url} is no address of an object store; write one as s3://bucket/prefix, and a folder "
            "of this machine as a path"
        )
    try:
        next(iter(client.list(chunk_size=1)), None)
    except (BaseError, FileNotFoundError) as error:
        raise _refusal("list", url, error) from error
    return client


def _refusal(doing: str, url: str, error: Exception) -> ResourceError:
    text = str(error)
    answer = ANSWER.search(text)
    reason = f"{answer['message'].rstrip('.')} ({answer['code']})" if answer else text.partition("\n")[0]
    if REFUSED.search(text):
        remedy = "check the credentials in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION)"
    elif answer and answer["code"] == "NoSuchBucket":
        remedy = "create the bucket or correct features.store"
    else:
        remedy = "check the network, features.store and AWS_ENDPOINT_URL, and run the same command again"
    return ResourceError(f"cannot {doing} {url}: {reason.rstrip(' .:')}; {remedy}")


def _age(meta: Any) -> float:
    return max(0.0, time.time() - float(meta["last_modified"].timestamp()))
