"""The report made: the archive read, sums of users made into rates, arms compared."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.archive.archive import Archive
from app.archive.experiment.keys import places_in
from app.archive.experiment.notes import listed, notes
from app.archive.experiment.report import MEASURES, MISMATCH, ArmReport, ComparisonReport, OffPolicy, Report, SampleRatio
from app.archive.experiment.rows import Bools, ExperimentRows
from app.archive.experiment.shares import Shares
from app.archive.experiment.statistics import chi_square, compare, holm, ratio
from app.archive.experiment.tally import FATES, Question, Tally
from app.errors import ReportError
from app.recommend.experiment import HOLDOUT
from app.state.lists import short_name


def make_report(
    archive: Archive,
    experiment: str,
    question: Question,
    version: int | None = None,
    all_versions: bool = False,
    shares: Shares | None = None,
    control: str | None = None,
) -> Report:
    """Read the archive twice, first for the events, then for the impressions.

    Args:
        version: of the experiment; None is the newest that the archive has, unless all are asked for.
        control: the arm to compare with; by default the first of the shares, or the one of that name, or the first by name.

    Raises:
        ArchiveError: there is no archive, or it is damaged.
        ReportError: it has nothing of that experiment or version, or what was asked for does not fit what is there.
    """
    rows = ExperimentRows(archive, short_name(experiment), question.since_ms)
    events = rows.events()
    if not rows.versions:
        names = rows.names()
        if short_name(experiment) in names:
            raise ReportError(f"--since: nothing of {experiment!r} has arrived since then")
        there = f"it has {', '.join(map(repr, names))}" if names else "it has none at all"
        raise ReportError(f"the archive {archive.folder} has nothing of an experiment {experiment!r}; {there}")
    if version is not None and version not in rows.versions:
        raise ReportError(f"--version: there is no {version} of {experiment!r}; there are {listed(sorted(rows.versions))}")
    versions = sorted(rows.versions) if all_versions else [max(rows.versions) if version is None else version]
    if shares is not None and shares.version is not None and not all_versions and shares.version != versions[0]:
        if shares.version in rows.versions:
            way = f"--version {shares.version} reports on that one"
        else:  # such as after a stop, which is a version, too, and one without lists
            way = f"the archive has no list of that one; GET /v1/experiments/{experiment}?version={versions[0]} gives the other"
        raise ReportError(
            f"{shares.origin}: is version {shares.version}, and the report is of version {versions[0]}: {way}, --expected says "
            "what the shares were"
        )
    tally = Tally(events.of(np.isin(events.version, versions)), question)
    for shown in rows.shown(versions):
        tally.add(shown)
    tally.finish()
    if question.policy is not None and not tally.policy_met:
        raise ReportError("--policy: no item of these lists, as far as they have propensities, is in the file")
    return _report(experiment, versions, rows, tally, question, shares, control)


def _report(
    experiment: str,
    versions: list[int],
    rows: ExperimentRows,
    tally: Tally,
    question: Question,
    shares: Shares | None,
    control: str | None,
) -> Report:
    arm_of = tally.arm
    _, person, arms_met = np.unique(tally.user_key, return_inverse=True, return_counts=True)
    single = arms_met[person] == 1
    present = {rows.arms[place] for place in {*arm_of.tolist(), *tally.nobodys, *np.unique(tally.events.arm).tolist()}}
    present = present or set(rows.arms)  # all that there is was shown at another time
    chosen, why = _control(present, shares, control)
    names = sorted(present | (set(shares.shares) if shares else set()), key=lambda name: (name != chosen, name == HOLDOUT, name))
    masks = {name: single & (arm_of == (rows.arms.index(name) if name in rows.arms else -1)) for name in names}
    arms = [_arm(name, masks[name], rows, tally, question) for name in names]
    by_type = np.bincount(tally.events.type, minlength=len(tally.events.types)).tolist()
    report = Report(
        experiment=experiment,
        versions=versions,
        all_versions=sorted(rows.versions),
        since_ms=question.since_ms,
        until_ms=question.until_ms,
        window_ms=question.window_ms,
        clip=question.clip,
        metrics=list(question.metrics),
        control=chosen,
        control_from=why,
        sample_ratio=_sample_ratio(arms, shares),
        users_in_several_arms=int((arms_met > 1).sum()),
        lists_of_users_in_several_arms=int(tally.column("lists")[~single].sum()),
        users_of_other_arms_before=_moved(rows, tally, single),
        repeated_impressions=tally.repeated_impressions,
        repeated_events=tally.events.repeated,
        lists_outside_time=tally.outside,
        events_by_type={name: count for name, count in zip(tally.events.types, by_type, strict=True) if count},
        arms=arms,
        comparisons=_comparisons(arms, question),
        off_policy=[one for name in names for one in _off_policy(name, masks[name], tally, question)],
    )
    report.notes = notes(report)
    return report


def _moved(rows: ExperimentRows, tally: Tally, single: Bools) -> int:
    """Of the users that are compared, those who saw lists of another arm under a version that is not in the report."""
    users, arms = tally.user_key[single], tally.arm[single]
    order = np.argsort(users)
    others, their_arms = rows.elsewhere()
    at = places_in(users[order], others)
    there = np.flatnonzero(at >= 0)
    mine = order[at[there]]
    return len(np.unique(mine[arms[mine] != their_arms[there]]))


def _control(present: set[str], shares: Shares | None, control: str | None) -> tuple[str, str]:
    if control is not None:
        if control not in present | set(shares.shares if shares else ()):
            raise ReportError(f"--control: there is no arm {control!r}; there are {listed(sorted(present))}")
        return control, "--control"
    if shares is not None:
        return shares.control, f"the first of {shares.origin}"
    if "control" in present:
        return "control", "by its name"
    return min(present, key=lambda name: (name == HOLDOUT, name)), "the first by name; --control names another"


def _arm(name: str, mine: Bools, rows: ExperimentRows, tally: Tally, question: Question) -> ArmReport:
    place = rows.arms.index(name) if name in rows.arms else -1
    fates = np.bincount(tally.fate[tally.events.arm == place], minlength=len(FATES)).tolist()
    sums = {column: tally.column(column)[mine] for column in tally.columns}
    ones = np.ones(int(mine.sum()))
    return ArmReport(
        name=name,
        users=len(ones),
        lists=int(sums["lists"].sum()),
        items=int(sums["items"].sum()),
        lists_without_user=tally.nobodys.get(place, 0),
        events=dict(zip(FATES, fates, strict=True)),
        counts={m: {unit: int(sums[f"{unit}:{m}"].sum()) for unit in ("lists", "items")} for m in question.metrics},
        rates={
            m: {
                "lists": ratio(sums[f"lists:{m}"], sums["lists"]),
                "per_user": ratio(sums[f"items:{m}"], ones),
                "users": ratio((sums[f"items:{m}"] > 0).astype(np.float64), ones),
                "items": ratio(sums[f"items:{m}"], sums["items"]),
            }
            for m in question.metrics
        },
    )


def _comparisons(arms: list[ArmReport], question: Question) -> list[ComparisonReport]:
    """Each arm against the first one, in every measure."""
    control, *others = arms
    pairs = [
        (arm.name, metric, measure, control.rates[metric][measure], arm.rates[metric][measure])
        for arm in others
        for metric in question.metrics
        for measure in MEASURES
    ]
    found = [compare(before, after) for *_, before, after in pairs]
    return [
        ComparisonReport(arm, metric, measure, before.value, after.value, difference, p)
        for (arm, metric, measure, before, after), difference, p in zip(pairs, found, holm([one.p for one in found]), strict=True)
    ]


def _sample_ratio(arms: list[ArmReport], shares: Shares | None) -> SampleRatio | None:
    if shares is None:
        return None
    for arm in arms:
        if arm.users and arm.name not in shares.shares:
            raise ReportError(f"{shares.origin}: has no share of the arm {arm.name!r}, which has {arm.users:,} users")
    observed = {arm.name: arm.users for arm in arms if arm.name in shares.shares}
    expected = {name: shares.shares[name] for name in observed}
    if len(observed) < 2 or not sum(observed.values()):
        return None
    statistic, degrees, p = chi_square(list(observed.values()), list(expected.values()))
    return SampleRatio(shares.origin, expected, observed, statistic, degrees, p, p < MISMATCH)


def _off_policy(arm: str, mine: Bools, tally: Tally, question: Question) -> list[OffPolicy]:
    mine = mine & (tally.column("places") > 0)
    if not mine.any():
        return []

    def of(column: str) -> NDArray[np.float64]:
        return tally.column(column)[mine]

    places = of("places")
    found = []
    for policy in tally.policies:
        weights, squares = of(f"{policy}:w"), float(of(f"{policy}:w2").sum())
        found += [
            OffPolicy(
                arm=arm,
                policy=policy,
                metric=metric,
                users=len(places),
                lists=int(of("weighed_lists").sum()),
                items=int(places.sum()),
                drawn=int(of("drawn").sum()),
                logged=ratio(of(f"places:{metric}"), places),
                ips=ratio(of(f"{policy}:w:{metric}"), places),
                clipped_ips=ratio(of(f"{policy}:clipped:{metric}"), places) if policy == "target" else None,
                snips=ratio(of(f"{policy}:w:{metric}"), weights),
                mean_weight=ratio(weights, places),
                effective_items=float(weights.sum()) ** 2 / squares if squares else 0.0,
            )
            for metric in question.metrics
        ]
    return found
