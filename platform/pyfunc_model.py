"""The registered model as MLflow's generic Python model, for programs that know MLflow but not this project.

MLflow keeps a copy of this file with the model and runs it on load; the project's own serving never does.
`mlflow.pyfunc.load_model(uri).predict(["scan.nii.gz"])` gives one uint8 mask per file, on the file's grid;
`load_model(uri, model_config={"modality": "MR"})` names the modality where the intensity rule needs one. A model of
several channels takes the files of an image one after the other, in the order of its channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from dropgen.features.studies.volume import read_volume
from dropgen.platform.segmenter import Segmenter


class SegmenterModel(PythonModel):
    """Calls the one `Segmenter` on files."""

    def load_context(self, context: PythonModelContext) -> None:
        self._segmenter = Segmenter.load(Path(context.artifacts["bundle"]))

    def predict(
        self, context: PythonModelContext, model_input: list[str], params: dict[str, Any] | None = None
    ) -> list[np.ndarray]:
        modality = context.model_config["modality"]
        count = self._segmenter.spec.image_channels
        images = [model_input[first : first + count] for first in range(0, len(model_input), count)]
        return [
            self._segmenter.predict(*(read_volume(Path(path)) for path in files), modality=modality) for files in images
        ]


set_model(SegmenterModel())
