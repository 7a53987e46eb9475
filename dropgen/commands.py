"""The table of verbs: what each is called, takes, and which function does it.

A verb's function takes the parsed `argparse.Namespace` (with `root`: absolute Path, `json`, `debug`
and `overrides`: tuple of `--section.key=value`) and returns the JSON document of `schema.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Option:
    """One argument of a verb, in argparse's terms."""

    flags: tuple[str, ...]
    settings: dict[str, Any]


def option(*flags: str, **settings: Any) -> Option:
    """Shorthand for the table below."""
    return Option(flags, settings)


@dataclass(frozen=True)
class Verb:
    """One verb of the command line.

    Attributes:
        target: `module:function` that runs it.
        overrides: Whether `--section.key=value` items are taken.
    """

    help: str
    target: str
    examples: tuple[str, ...]
    options: tuple[Option, ...] = ()
    overrides: bool = False


def path_or_address(text: str) -> Path | str:
    """An address stays text: a path would lose one of its slashes."""
    return text if "://" in text else Path(text)


EXPERIMENT = option("experiment", type=Path, help="experiment YAML, see configs/experiments/")
METHOD = option("--method", help="a method of the experiment by its label, for example 'dropgen p=0.5' (default: all)")
SEED = option("--seed", type=int, help="one seed of the experiment (default: all)")
ADAPT = "test-time method: tent, sfb or alpha, with options as in 'tent steps=5 bn_stats=source'"
SEEDS = option("--seeds", type=json.loads, help="number of seeds per method, or a list (default: the experiment's)")
TOKEN_FILE = option(
    "--token-file", type=Path, help="file with the service's token (default: DROPGEN_TOKEN, else the one under --root)"
)
DRY_RUN = option(
    "--dry-run", action="store_true", help="print what is left to do, disk and hours, and write nothing at all"
)
MEASURE = option(
    "--measure", action="store_true", help="with --dry-run: take a few training steps of every method, to tell hours"
)
ADDRESS = option("--address", help="address of a running Ray cluster (default: RAY_ADDRESS, else a local one)")

SEGMENTING = (
    option("--derived", action="store_true", help="also segment DICOM series that are derived from others"),
    option("--name", default="demo", help="registered model name (default demo)"),
    option("--alias", default="champion", help="alias to use (default champion)"),
    option("--bundle", type=Path, help="a Segmenter folder instead of a registered model"),
    option("--url", help="address of a running `dropgen serve` instead of working in process"),
)

VERBS: dict[str, Verb] = {
    "demo": Verb(
        "make a multi-domain study and run the whole main job on it",
        "dropgen.tuning.demo:command",
        ("demo", "demo --seeds 3", "demo --json --root results"),
        (SEEDS, ADDRESS),
        overrides=True,
    ),
    "run": Verb(
        "run an experiment whole: check, precompute, train and search, evaluate, register, report",
        "dropgen.tuning.run:command",
        ("run configs/experiments/demo.yaml", "run my.yaml --training.steps=2000", "run my.yaml --dry-run --measure"),
        (EXPERIMENT, DRY_RUN, MEASURE, ADDRESS),
        overrides=True,
    ),
    "study": Verb(
        "check every case of a study, plan one, make one of a public benchmark's archive, or a domain shift out of one",
        "dropgen.features.studies.command:command",
        (
            "study check my-study.yaml", "study check my.yaml --json",
            "study convert amos amos22/ studies/amos", "study convert prostate SAML/ studies/prostate",
            "study shift my-study.yaml studies/shifted",
            "study plan my-raw-folder", "study plan my.yaml --memory-gb 16 --measure",
        ),
        (
            option(
                "action",
                choices=("check", "convert", "shift", "plan"),
                help="check: verify every case; convert: write manifest and YAML for an archive as it is published; "
                "shift: write a study whose held-out cases come back under intensity shifts; plan: say which spacing, "
                "crop and intensity rule suit the training cases, and what disk, memory and time they take",
            ),
            option(
                "study",
                help="check, shift, plan: study YAML, or an experiment YAML that names one; plan: or a manifest CSV or "
                "an nnU-Net raw folder; convert: brats, amos, cow, hvsmr, prostate or pandg",
            ),
            option(
                "raw", type=Path, nargs="?",
                help="convert: the unpacked archive, which is only read; shift: folder for the new study",
            ),
            option("out", type=Path, nargs="?", help="convert: folder for the study"),
            option("--include-va-ct", action="store_true", help="convert amos: train on the 100 CT of imagesVa too"),
            option("--shifts", default="all", help="shift: gamma, inverted, biased, noisy, coarse (default: all)"),
            option("--memory-gb", type=float, help="plan: memory that a training step may take (default 8)"),
            option("--measure", action="store_true", help="plan: time a few small training steps, to tell the hours"),
        ),
    ),
    "precompute": Verb(
        "write prepared volumes, labels and features of every case to the Zarr store",
        "dropgen.features.precompute:command",
        ("precompute my.yaml", "precompute my.yaml --workers 4"),
        (
            EXPERIMENT,
            option("--workers", type=int, default=2, help="extractor processes (default 2)"),
            ADDRESS,
        ),
        overrides=True,
    ),
    "store": Verb(
        "look after the store: what is missing, damaged, large or not needed any more",
        "dropgen.features.store.command:command",
        ("store status my.yaml", "store verify my.yaml", "store du", "store gc", "store gc --yes"),
        (
            option(
                "action",
                choices=("status", "verify", "du", "gc"),
                help="status: count what an experiment has and lacks; verify: hash every byte again, of an experiment "
                "or of all; du: bytes per study, extractor and kind; gc: list what no study refers to",
            ),
            option("experiment", type=Path, nargs="?", help="experiment YAML, for status and verify"),
            option("--yes", action="store_true", help="with gc: delete what it lists"),
        ),
        overrides=True,
    ),
    "train": Verb(
        "train trials of an experiment, without a search",
        "dropgen.platform.train:command",
        ("train my.yaml --method erm --seed 1", "train my.yaml --method 'dropgen p=0.5' --training.workers=2"),
        (EXPERIMENT, METHOD, SEED, ADDRESS),
        overrides=True,
    ),
    "search": Verb(
        "search p and every other hyperparameter with Ray Tune; register the best trial",
        "dropgen.tuning.search:command",
        (
            "search", "search my.yaml --max-minutes 60", "search my.yaml --search.sampler=tpe --search.scheduler=asha",
            "search my.yaml --methods all --seeds 3", "search --methods erm,dropgen,tent --defaults",
            "search my.yaml --methods all --dry-run",
        ),
        (
            option("experiment", type=Path, nargs="?", help="experiment YAML (default: p on the demo study)"),
            option(
                "--methods",
                help="compare these side by side and test them: all, or names with commas between them, of methods, "
                "test-time methods and external baselines; see `dropgen methods`",
            ),
            option(
                "--defaults", action="store_true", help="with --methods: no search, each method at its default values"
            ),
            SEEDS,
            option("--max-minutes", type=float, help="end after this time; the next search continues"),
            DRY_RUN,
            MEASURE,
            ADDRESS,
        ),
        overrides=True,
    ),
    "evaluate": Verb(
        "predict the test cases on their native grids and score them",
        "dropgen.platform.evaluate:command",
        ("evaluate my.yaml", "evaluate my.yaml --method erm", "evaluate my.yaml --adapt tent"),
        (
            EXPERIMENT,
            METHOD,
            SEED,
            option("--adapt", help=f"{ADAPT}; what is not given is tuned on the validation cases"),
        ),
        overrides=True,
    ),
    "report": Verb(
        "write the HTML page of an experiment that has been run, from what is on disk",
        "dropgen.platform.evaluation.report:command",
        ("report my.yaml", "report my.yaml --latex"),
        (EXPERIMENT, option("--latex", action="store_true", help="write tables.tex for a paper too (booktabs)")),
        overrides=True,
    ),
    "compare": Verb(
        "compare the results of two experiments that ran the same methods, seeds and cases",
        "dropgen.platform.evaluation.compare:command",
        (
            "compare stored online", "compare stored online --margin 1",
            "compare stored online --margin 1 --method 'dropgen p=0.5'",
            "compare runs/stored /mnt/cluster/runs/online --margin 0.5 --json",
            "compare asha-grid asha --search > docs/results/asha.md",
        ),
        (
            option("a", metavar="A", help="an experiment that has been run: its name, or its folder under any root"),
            option("b", metavar="B", help="another, to be told apart from A"),
            option("--margin", type=float, help="say whether B loses less than so many Dice points (default: do not)"),
            option("--method", help="compare this one alone, by its label, for example 'dropgen p=0.5' (default: all)"),
            option(
                "--search", action="store_true",
                help="compare how they searched: A trained its whole grid, B stopped trials early (prints Markdown)",
            ),
        ),
    ),
    "register": Verb(
        "put a trained bundle into the model registry and point an alias at it",
        "dropgen.platform.tracking:command",
        ("register runs/demo/trials/3f2a/bundle --name demo", "register BUNDLE --name demo --alias candidate"),
        (
            option("bundle", type=Path, help="Segmenter folder"),
            option("--name", required=True, help="registered model name"),
            option("--alias", default="champion", help="alias that will point at it (default champion)"),
        ),
    ),
    "serve": Verb(
        "serve a registered model over HTTP",
        "dropgen.serving.app:command",
        ("serve --name demo", "serve --name demo --alias candidate --port 8080", "serve --replicas 1 --max-replicas 4"),
        (
            option("--name", default="demo", help="registered model name (default demo)"),
            option("--alias", default="champion", help="alias to serve (default champion)"),
            option("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)"),
            option("--port", type=int, default=8000, help="port to listen on (default 8000)"),
            option("--replicas", type=int, default=1, help="model replicas (default 1)"),
            option("--max-replicas", type=int, help="replicas under load (default: as many as --replicas)"),
            TOKEN_FILE,
            option("--insecure", action="store_true", help="ask for no token; on an address of this machine alone"),
            option("--models-gb", type=float, help="memory for a replica's models (default: a quarter of its share)"),
            option(
                "--margin-gb", type=float, default=2,
                help="memory that a replica may keep beyond its models and the volume in hand; one that keeps more "
                "ends what it has and is replaced (default 2; inf: never)",
            ),
            option("--queue", type=int, default=16, help="requests that a replica takes on at a time (default 16)"),
            option("--timeout", type=float, default=900, help="seconds to make a mask in, /v1/segment (default 900)"),
            option("--keep-hours", type=float, default=24, help="hours that a finished job is kept (default 24)"),
            option("--allow", type=Path, nargs="*", default=[], help="folders whose files jobs may name by path"),
            ADDRESS,
        ),
    ),
    "segment": Verb(
        "segment NIfTI files and DICOM series, in process or through a running server",
        "dropgen.serving.batch:command",
        (
            "segment scans/ masks/ --name demo", "segment scans/ masks/ --url http://127.0.0.1:8000",
            "segment scans/ masks/ --uncertainty", "segment list.csv masks/", "segment export/ masks/ --dicom-seg",
            "segment scans/ masks/ --workers 2",
            "segment 'https://pacs/dicom-web/series?PatientID=P-17&Modality=MR' masks/ --store",
        ),
        (
            option(
                "input",
                type=path_or_address,
                help="folder of NIfTI files, or of DICOM series at any depth; or a CSV with the column image and, as "
                "wanted, id and modality; or a DICOMweb search, https://host/dicom-web/series?PatientID=...",
            ),
            option("output", type=Path, help="folder for masks and outcomes.csv"),
            option(
                "--dicom-seg",
                nargs="?",
                const="labelmap",
                choices=("labelmap", "binary"),
                help="also write a DICOM-SEG of every DICOM series: a label map, or binary for readers that know none",
            ),
            option("--store", action="store_true", help="give each DICOM-SEG to the DICOMweb archive of the input"),
            option(
                "--dicomweb-auth",
                type=Path,
                help="file with USER:PASSWORD or Bearer TOKEN for the archive (default: DROPGEN_DICOMWEB_AUTH)",
            ),
            *SEGMENTING,
            option(
                "--workers",
                type=int,
                help="model processes, on a GPU each where there are any; one that dies costs no scan; 0 keeps the "
                "model in this process (default: 0 for less than 20 scans, else one per GPU and at least 1)",
            ),
            option(
                "--in-flight", type=int, default=3,
                help="scans that each model has in hand: one in it, the others being read or written (default 3)",
            ),
            ADDRESS,
            TOKEN_FILE,
            option("--modality", help="modality of the scans, where the model's intensity rule needs it"),
            option("--adapt", help=f"{ADAPT}; `dropgen evaluate --adapt` prints tuned ones"),
            option("--stable-bundle", type=Path, help="Segmenter folder of a rep_only model, for sfb and alpha"),
            option(
                "--uncertainty",
                action="store_true",
                help="also say how sure the model is, per case and voxel: entropy, and for DropGen whether image and "
                "features alone agree, which takes three passes over a volume instead of one",
            ),
        ),
    ),
    "listen": Verb(
        "receive DICOM series by C-STORE, segment them and push their DICOM-SEG on",
        "dropgen.serving.listen:command",
        (
            "listen --name demo --accept SCANNER", "listen --accept SCANNER --to PACS@127.0.0.1:4242",
            "listen --host 0.0.0.0 --accept SCANNER WORKSTATION --to PACS@10.0.0.5:11112",
        ),
        (
            option("--aet", default="DROPGEN", help="AE title that senders call (default DROPGEN)"),
            option("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)"),
            option("--port", type=int, default=11112, help="port to listen on, 0 for a free one (default 11112)"),
            option("--accept", nargs="+", default=[], metavar="TITLE", help="AE titles that may send"),
            option("--to", metavar="TITLE@HOST:PORT", help="where DICOM-SEG are pushed (default: they stay here)"),
            option(
                "--quiet",
                type=float,
                default=30,
                help="seconds without a slice after which a series is complete (default 30)",
            ),
            option(
                "--dicom-seg",
                default="labelmap",
                choices=("labelmap", "binary"),
                help="type of DICOM-SEG: a label map (default), or binary for readers that know none",
            ),
            *SEGMENTING,
            TOKEN_FILE,
            option("--modality", help="modality of the series, where the model's intensity rule needs it"),
        ),
    ),
    "methods": Verb(
        "list methods, test-time methods and extractors, or print a configuration to start from",
        "dropgen.platform.methods.command:command",
        ("methods", "methods --yaml dropgen", "methods --json", "methods --markdown > docs/methods.md"),
        (
            option("--yaml", metavar="NAME", help="print an experiment YAML for this part"),
            option("--markdown", action="store_true", help="print the list as a page"),
        ),
    ),
    "bench": Verb(
        "measure crop reading, precomputing, training steps, prediction, surface metrics, whole studies or the service",
        "dropgen.serving.bench.command:command",
        (
            "bench store", "bench store --shape 128,128,128 --crops 64", "bench precompute --workers 1,2", "bench step",
            "bench metrics",
            "bench step --crops 32 --network.base=8 --network.downs=3",
            "bench step --methods all --crops 32 --network.base=8 --network.downs=3", "bench predict",
            "bench predict --part memory --shape 256,256,150", "bench segment --scans 24", "bench serve",
            "bench serve --requests 100,5,30 --replicas 2",
        ),
        (
            option(
                "action",
                choices=("store", "precompute", "step", "predict", "metrics", "segment", "serve"),
                help="store: time crop reading; precompute: time computing features with one and with several volumes "
                "in flight; step: time a training step; predict: memory of a prediction, and what features cost it; "
                "metrics: time HD95 and NSD of 8 classes against MONAI's; segment: how busy a study keeps the model, "
                "against the model alone; serve: load, soak and a killed replica",
            ),
            option(
                "--shape",
                help="voxels of a volume (default: store 240,240,155, precompute 128,128,128, predict 512,512,300 for "
                "memory and 160,160,128 for features, metrics 256,256,160, segment 128,128,128)",
            ),
            option("--channels", type=int, help="store: feature channels (default 16)"),
            option("--crops", help="voxels per edge of the crops (default 64,128; step and predict take one, 64)"),
            option("--part", choices=("memory", "features"), help="predict: one of its two parts (default: both)"),
            option("--classes", type=int, help="predict: background included (default: memory 16, features 2)"),
            option("--workers", help="precompute: numbers of processes to time (default 1,2)"),
            option("--methods", help="step: time these beside ERM, at their defaults: all, or names with commas"),
            option("--repeats", type=int, help="rounds, at least 5 (default 5; predict: at least 1, default 1)"),
            option("--scans", type=int, help="segment: scans of the study (default 12)"),
            option("--edges", help="serve: voxels per edge of a small and of a large volume (default 32,128)"),
            option(
                "--requests",
                help="serve: how many for small volumes, for large ones, and for small ones while a replica is killed "
                "(default 1000,50,100)",
            ),
            option("--clients", type=int, help="serve: that ask at the same time (default 4)"),
            option("--replicas", type=int, help="serve: that answer (default 1)"),
        ),
        overrides=True,
    ),
    "doctor": Verb(
        "check this machine: packages, memory, disk, Ray, a 3D convolution",
        "dropgen.tuning.doctor:command",
        ("doctor",),
    ),
}  # fmt: skip
