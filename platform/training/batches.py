"""Turns planned samples into training batches: read what survives, replay the geometry, add noise."""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dropgen.config import Augmentation
from dropgen.features.extractors import Extractor, instance_norm
from dropgen.features.index import CaseKeys
from dropgen.features.store import FeatureStore
from dropgen.features.studies.prepare import network_scale
from dropgen.platform.methods import Method
from dropgen.platform.methods.batch import Batch
from dropgen.platform.training.augment import add_noise, warp
from dropgen.platform.training.plan import Sample, SamplePlan

PREFETCH = 4
# Beside the noise seed: what is drawn here must not repeat what the augmentation draws.
METHOD_STREAM, ONLINE_STREAM = 1, 2


@dataclass(frozen=True)
class Batches:
    """Makes the batch of any step, for one worker's share of the slots.

    Attributes:
        plan: What each slot of each step is.
        slots: The slots of this worker.
        method: Which features are needed, and what it does to the crops.
        classes: Number of classes, background included.
        store: Where volumes, labels and stored features are.
        keys: Store keys of every training case.
        extractor: For online features, and for what stored features are beyond the crop.
        online_share: Share of the samples, 0..1, whose features are computed from the augmented crop; those of the
            others are read from the store.
        augmentation: Probabilities and switches.
        device: Where the batch and online extraction live.
    """

    plan: SamplePlan
    slots: tuple[int, ...]
    method: Method
    classes: int
    store: FeatureStore
    keys: Mapping[str, CaseKeys]
    extractor: Extractor | None
    online_share: float
    augmentation: Augmentation
    device: str

    def at(self, step: int) -> Batch:
        """The batch of one step, on the device."""
        samples = [self.plan.sample(step, slot) for slot in self.slots]
        read = [self.read(sample) for sample in samples]
        units, labels = self.method.augment(
            torch.stack([unit for unit, _, _ in read]),
            torch.stack([label for _, label, _ in read]),
            self.classes,
            [np.random.default_rng((sample.noise_seed, METHOD_STREAM)) for sample in samples],
        )
        units, labels = units.to(self.device), labels.to(self.device)
        kept = torch.from_numpy(np.stack([sample.kept for sample in samples])).to(self.device)
        features = self._features([values for *_, values in read], units, kept) if self.method.needs_features else None
        strength = torch.tensor([sample.strength for sample in samples], device=self.device)
        image = network_scale(units, [self.store.volume(self.keys[sample.case].volume) for sample in samples])
        return Batch(image, labels, features, kept, samples[0].noise_seed, strength)

    def read(self, sample: Sample) -> tuple[Tensor, Tensor, Tensor | None]:
        """One sample before its method and the instance norm.

        Returns:
            Unit crop `[M, X, Y, Z]` and label `[1, X, Y, Z]`; raw features `[C, X, Y, Z]`, on the device, where this
            sample's are stored ones.
        """
        keys = self.keys[sample.case]
        assert keys.label is not None
        unit = _tensor(sample.symmetry(self.store.volume(keys.volume).unit[:, *sample.box]))
        label = _tensor(sample.symmetry(self.store.label(keys.label)[sample.box][None]))
        if self.augmentation.intensity and self.augmentation.probability > 0:
            unit = add_noise(unit, sample.noise_seed, self.augmentation.probability)
        stored = self.method.needs_features and not self._online(sample)
        features = self._stored_features(sample) if stored else None
        if sample.affine is not None:
            zero = torch.zeros(1)
            unit = warp(unit, sample.affine, zero).clamp(0, 1)
            label = warp(label, sample.affine, zero, mode="nearest")
        return unit, label.long(), features

    def _online(self, sample: Sample) -> bool:
        """Whether a sample's features are those of the augmented crop: by its own seed, whoever makes the batch."""
        return float(np.random.default_rng((sample.noise_seed, ONLINE_STREAM)).random()) < self.online_share

    def _features(self, stored: list[Tensor | None], units: Tensor, kept: Tensor) -> Tensor:
        """Features of a batch after the instance norm, on the device.

        Args:
            stored: Raw features `[C, X, Y, Z]` of every sample; None where they are computed from `units`.
            units: `[B, M, X, Y, Z]`, augmented.
            kept: Surviving channels of the network's input, bool `[B, M + C]`.
        """
        assert self.extractor is not None
        online = torch.tensor([values is None for values in stored], device=self.device)
        if online.all():
            return instance_norm(self.extractor(units))
        blank = torch.zeros(self.extractor.channels, *self.plan.crop, device=self.device)
        features = torch.stack([blank if values is None else values for values in stored])
        # A channel that is not kept is zero, and the norm would leave it so.
        survivors = kept[:, -self.extractor.channels :] & ~online[:, None]
        features[survivors] = instance_norm(features[survivors][None])[0]
        if online.any():
            features[online] = instance_norm(self.extractor(units[online]))
        return features

    def _stored_features(self, sample: Sample) -> Tensor:
        """Raw features of the crop under the sample's geometry, on the device; dropped channels stay zero, unread.

        They travel in the stored type and become float32 there. The features are the last channels of every network
        input, so the last entries of `kept`.
        """
        assert self.extractor is not None
        key = self.keys[sample.case].features
        assert key is not None
        count = self.extractor.channels
        wanted = np.flatnonzero(sample.kept[-count:])
        permutation = self.extractor.channel_permutation(sample.symmetry) or tuple(range(count))
        result = torch.zeros(count, *self.plan.crop, device=self.device)
        if len(wanted):
            source = [permutation[channel] for channel in wanted]
            stored = self.store.features(key)
            turned = np.ascontiguousarray(sample.symmetry(stored.read(source, sample.box)))
            crop = stored.decode(torch.from_numpy(turned).to(self.device), source)
            if sample.affine is not None:
                crop = warp(crop, sample.affine, self._background[wanted])
            result[wanted] = crop
        return result

    @functools.cached_property
    def _background(self) -> Tensor:
        """The extractor's response `[C]` to an empty image: what lies beyond a stored crop."""
        assert self.extractor is not None
        size, any_case = self.extractor.min_size, next(iter(self.keys.values()))
        channels = len(self.store.volume(any_case.volume).unit)
        return self.extractor(torch.zeros(1, channels, size, size, size, device=self.device)).mean(dim=(0, 2, 3, 4))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


@dataclass
class Prefetched:
    """Batches made ahead in a thread, in order.

    Attributes:
        waited: Seconds that the consumer spent waiting for a batch.
    """

    batches: Batches
    start: int
    stop: int
    waited: float = 0.0

    def __iter__(self) -> Generator[tuple[int, Batch], None, None]:
        """Yields (step, batch) for every step; an error in the thread is raised here, closing it ends the thread."""
        ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=PREFETCH)
        closed = threading.Event()

        def put(item: Batch | BaseException) -> None:
            while not closed.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def produce() -> None:
            try:
                for step in range(self.start, self.stop):
                    if closed.is_set():
                        return
                    put(self.batches.at(step))
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=produce, name="batches", daemon=True)
        thread.start()
        try:
            for step in range(self.start, self.stop):
                began = time.perf_counter()
                item = ready.get()
                self.waited += time.perf_counter() - began
                if isinstance(item, BaseException):
                    raise item
                yield step, item
        finally:
            closed.set()
            thread.join()
