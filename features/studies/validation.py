"""Which cases choose: checkpoint, hyperparameters and test-time settings, under the rule that an experiment names."""

from __future__ import annotations

from dataclasses import replace

from dropgen.config import LEAVE_ONE_OUT
from dropgen.errors import StudyError
from dropgen.features.studies.study import Case, Study


def folds(study: Study) -> dict[str, Study]:
    """By every training domain the study that is trained on the other ones and validated on this one.

    A fold validates on its domain's training and validation cases, but for those of a person whom it trains on, and
    knows no other validation and no test case.

    Raises:
        StudyError: There is one training domain alone, or a domain holds nobody whom the others do not.
    """
    domains = sorted(study.train_domains)
    if len(domains) < 2:
        raise StudyError(
            f"study {study.name} trains on one domain alone, {domains[0]}, and selection.rule = {LEAVE_ONE_OUT} leaves "
            "one of several out in turn; name another rule, or tell the domains of the training cases apart"
        )
    found = {}
    for domain in domains:
        trained = tuple(case for case in study.split("train") if case.domain != domain)
        known = {case.subject for case in trained}
        judged = tuple(
            replace(case, split="val")
            for case in (*study.split("train"), *study.split("val"))
            if case.domain == domain and case.subject not in known
        )
        if not judged:
            raise StudyError(
                f"study {study.name}: everybody in domain {domain} is in another training domain too, so it cannot be "
                "left out; name another selection.rule"
            )
        found[domain] = replace(study, cases=(*trained, *judged))
    return found


def validation_cases(study: Study, rule: str) -> tuple[Case, ...]:
    """The cases that choose checkpoint and hyperparameters under a rule of `dropgen.config.Selection`.

    Under "leave_one_domain_out" these are the cases of all folds, each judged by networks that did not train on it.

    Raises:
        StudyError: No validation case fits the rule.
    """
    if rule == LEAVE_ONE_OUT:
        return tuple(case for fold in folds(study).values() for case in fold.split("val"))
    train = study.train_domains
    wanted = {"target_validation": (False,), "source_validation": (True,), "all_validation": (False, True)}[rule]
    chosen = tuple(case for case in study.split("val") if (case.domain in train) in wanted)
    if not chosen:
        domains = sorted({case.domain for case in study.split("val")})
        raise StudyError(
            f"study {study.name}: no validation case fits rule {rule}, validation domains are "
            f"{', '.join(domains) or 'none'} and training domains {', '.join(sorted(train))}; change selection.rule"
        )
    return chosen
