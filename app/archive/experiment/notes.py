"""What a reader of the report must know beside its figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from app.archive.experiment.report import ArmReport, Report
from app.archive.experiment.tally import ANY

_FEW_USERS: Final = 250  # below, intervals of users of very different eagerness held the truth in 86 to 93 of 100 cases
_FEW_CONVERTED: Final = 10


def notes(report: Report) -> list[str]:
    """Sentences, each on its own."""
    said = []
    if report.sample_ratio is None:
        said.append(
            "Whether the arms have the users that they should was not checked: --expected or --experiment-file says the shares."
        )
    elif min(report.sample_ratio.expected.values()) * sum(report.sample_ratio.observed.values()) < 5:
        said.append("The check of the users by arm is rough: fewer than 5 are expected in one of them.")
    if report.users_in_several_arms:
        said.append(
            f"{report.users_in_several_arms:,} users were in more than one arm (shares or salt changed, identities were merged): "
            f"they, with {report.lists_of_users_in_several_arms:,} lists, are left out."
        )
    if report.users_of_other_arms_before:
        said.append(
            f"{report.users_of_other_arms_before:,} of the users compared were in another arm under another version, and may "
            "act on what they saw then; --all-versions leaves such users out."
        )
    nobodys = sum(arm.lists_without_user for arm in report.arms)
    if nobodys:
        said.append(f"{nobodys:,} lists were shown to nobody who is named: without a user they are in no arm's figures.")
    lost = sum(arm.events["without_impression"] for arm in report.arms)
    if lost:
        said.append(f"{lost:,} events are of lists of which nobody said that they were shown, and count for nothing.")
    odd = sum(arm.events[fate] for arm in report.arms for fate in ("item_not_shown", "before_shown"))
    if odd:
        said.append(f"{odd:,} events are of items that were not shown in their list, or not yet, and count for nothing.")
    for metric in report.metrics:
        if metric != ANY and metric not in report.events_by_type:
            there = listed(list(report.events_by_type)) if report.events_by_type else "none at all"
            said.append(f"No event of the type {metric!r} names a list of this experiment; types there are: {there}.")
    if len(report.versions) > 1:
        said.append(
            f"Versions {listed(report.versions)} are one here: where an arm is not the same in each of them, nothing follows, "
            "and the users by arm fit no shares if those have changed."
        )
    compared = [one for one in report.comparisons if one.against.p is not None]
    if len(compared) > 1:
        said.append(
            f"{len(compared)} comparisons: one in twenty has p < .05 by chance. p (Holm) holds for all of them together; each "
            "interval holds on its own."
        )
    small = [arm.name for arm in report.arms if _is_small(arm, report.metrics)]
    if report.comparisons and small:
        said.append(
            f"Few users, or few of them with an event, in {listed(small)}: below {_FEW_USERS} and {_FEW_CONVERTED} p-values and "
            "intervals are rough."
        )
    for one in report.off_policy:
        mean, error = one.mean_weight.value, one.mean_weight.error
        if (
            one.policy == "target"
            and one.metric == report.metrics[0]
            and mean is not None
            and abs(mean - 1) > max(3 * (error or 0), 1e-6)
        ):
            said.append(
                f"{one.arm}: the policy's weights are {mean:.3f} on average, and not 1: it wants what could not be shown in "
                "these places, or its file lacks items that were shown. IPS counts what is not covered as nothing, SNIPS takes "
                "it to be as the rest."
            )
    return said


def _is_small(arm: ArmReport, metrics: list[str]) -> bool:
    converted = [(arm.rates[metric]["users"].value or 0.0) * arm.users for metric in metrics]
    return arm.users < _FEW_USERS or min(converted) < _FEW_CONVERTED - 0.5


def listed(things: Iterable[int | str]) -> str:
    return ", ".join(map(str, things))
