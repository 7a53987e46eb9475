from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf

from dropgen.config import Component, Network
from dropgen.errors import ConfigError
from dropgen.features.studies.prepare import Prepared
from dropgen.platform.adaptation import Target
from dropgen.platform.adaptation.batchnorm import affine_parameters
from dropgen.platform.adaptation.boosting import combine, correct, soft_confusion, unmixing
from dropgen.platform.adaptation.sfb import Sfb
from dropgen.platform.adaptation.temperature import fit_temperature
from dropgen.platform.segmenter import Segmenter
from tests_support.segmenters import make_segmenter


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_without_steps_the_unstable_prediction_is_the_stored_models(
    erm: Segmenter, rep_only: Segmenter, prepared: Prepared
) -> None:
    stable, unstable = rep_only.logits(prepared).softmax(dim=0), erm.logits(prepared).softmax(dim=0)
    pseudo = stable
    for _ in range(2):
        confusion, mass = soft_confusion(pseudo)
        pseudo = combine(stable, correct(unstable, unmixing(confusion, mass)), mass / mass.sum())
    found = Sfb(steps=0, rounds=2).scores(Target(erm, rep_only, prepared), rng())
    assert torch.allclose(found, pseudo, atol=5e-3)  # float16 between the rounds


def test_each_class_is_a_probability(erm: Segmenter, rep_only: Segmenter, prepared: Prepared) -> None:
    found = Sfb(steps=1).scores(Target(erm, rep_only, prepared), rng())
    assert torch.allclose(found.sum(dim=0), torch.ones_like(found[0]), atol=2e-3)
    assert (found >= 0).all()


def distance(model: Segmenter, prepared: Prepared, pseudo: torch.Tensor) -> float:
    return float(nnf.kl_div(model.logits(prepared).log_softmax(dim=0), pseudo, reduction="none").sum(dim=0).mean())


def test_steps_bring_the_unstable_model_towards_the_pseudo_labels(
    erm: Segmenter, rep_only: Segmenter, one_crop: Prepared
) -> None:
    pseudo = rep_only.logits(one_crop).softmax(dim=0)
    adapted, sfb = erm.clone(), Sfb(steps=5, learning_rate=1e-3)
    optimizer = torch.optim.Adam(adapted.network.parameters(), lr=sfb.learning_rate)
    sfb.learn(adapted, optimizer, Target(erm, rep_only, one_crop), pseudo.half(), rng())
    assert distance(adapted, one_crop, pseudo) < distance(erm, one_crop, pseudo)


@pytest.mark.parametrize("parameters", ["all", "bn"])
def test_what_is_trained_is_what_was_asked_for_and_statistics_stay(
    erm: Segmenter, rep_only: Segmenter, one_crop: Prepared, parameters: str
) -> None:
    adapted, sfb = erm.clone(), Sfb(steps=2, learning_rate=1e-2, parameters=parameters)
    optimizer = torch.optim.Adam(sfb._trained(adapted), lr=sfb.learning_rate)
    sfb.learn(adapted, optimizer, Target(erm, rep_only, one_crop), rep_only.logits(one_crop).softmax(dim=0), rng())
    before = erm.network.state_dict()
    changed = {key for key, value in adapted.network.state_dict().items() if not torch.equal(value, before[key])}
    expected = affine_parameters(adapted.network) if parameters == "bn" else list(adapted.network.parameters())
    names = {id(parameter): name for name, parameter in adapted.network.named_parameters()}
    assert changed == {names[id(parameter)] for parameter in expected}


def test_a_uniform_unstable_model_divides_the_stable_one_by_its_prior(
    erm: Segmenter, rep_only: Segmenter, prepared: Prepared
) -> None:
    uniform = erm.clone()
    with torch.no_grad():
        list(uniform.network.parameters())[-1].zero_()  # the head has no bias: every logit is 0
    stable = rep_only.logits(prepared).softmax(dim=0)
    confusion, mass = soft_confusion(stable.half())
    corrected = correct(torch.full_like(stable, 1 / 3), unmixing(confusion, mass))
    expected = combine(stable, corrected, mass / mass.sum())
    found = Sfb(steps=0, rounds=1).scores(Target(uniform, rep_only, prepared), rng())
    assert torch.allclose(found, expected, atol=2e-3)


def test_the_temperature_divides_the_stable_logits(erm: Segmenter, rep_only: Segmenter, prepared: Prepared) -> None:
    hot = rep_only.clone()
    with torch.no_grad():
        list(hot.network.parameters())[-1].mul_(4)
    one = Sfb(steps=0, rounds=1, temperature=1.5).scores(Target(erm, rep_only, prepared), rng())
    four = Sfb(steps=0, rounds=1, temperature=6.0).scores(Target(erm, hot, prepared), rng())
    assert torch.allclose(one, four, atol=2e-3)


def test_calibration_fits_the_stable_model_and_respects_a_given_temperature(
    erm: Segmenter, rep_only: Segmenter, prepared: Prepared
) -> None:
    label = np.random.default_rng(0).integers(0, 3, prepared.shape).astype(np.uint8)
    cases = [(Target(erm, rep_only, prepared), label)]
    expected = fit_temperature([rep_only.logits(prepared)], [torch.from_numpy(label)])
    assert Sfb().calibrated(cases).temperature == pytest.approx(expected, rel=1e-2)
    assert Sfb(temperature=2.5).calibrated(cases).temperature == 2.5


def test_a_model_without_batch_norm_has_none_to_train(rep_only: Segmenter, prepared: Prepared) -> None:
    other = make_segmenter(Component.of("erm"), network=Network(name="segresnet", base=8, downs=1))
    with pytest.raises(
        ConfigError, match=r"sfb: parameters = 'bn', and segmenter .* has no BatchNorm layer; set it to all"
    ):
        Sfb(steps=1, parameters="bn").scores(Target(other, rep_only, prepared), rng())
