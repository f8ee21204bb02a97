"""Who answers a question and under which rules, where an experiment decides about that."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastapi import Request

from app.api.service import Service, models_of, under
from app.errors import InvalidRequestError, LongwaveError, NotFoundError
from app.recommend.answer import ExperimentArm, Query
from app.recommend.experiment import HOLDOUT, Arm, Experiment
from app.recommend.scenarios import Named
from app.state.lists import short_name


@dataclass(frozen=True, slots=True)
class Turn:
    """What those of one arm get: lists of this model, under the rules of the scenario beside their own.

    Attributes:
        experiment: whose lists they are; None if they are no experiment's.
        unserved: name of the experiment, as ids of lists say it, and of the arm whose model should answer, and is not open here.
    """

    service: Service
    scenario: Named | None = None
    experiment: ExperimentArm | None = None
    unserved: tuple[str, str] | None = None

    def question(self, query: Query) -> Query:
        """A question as it is asked here. Raises InvalidRequestError if there are too many rules."""
        query = replace(query, experiment=self.experiment, unserved=self.unserved)
        if self.scenario is None:
            return query
        named, rules = self.scenario
        return replace(query, rules=query.rules.under(rules), scenario=named)


async def experiment_of(request: Request, name: str, away: bool = False) -> Experiment:
    """The experiment that a request names; `away` as of `Remembered.get`. Raises NotFoundError, StorageError."""
    return await models_of(request).experiments.get(name, away)


async def turn_of(request: Request, service: Service, experiment: Experiment, arm: Arm | None, away: bool = False) -> Turn:
    """What those of an arm get, None being the holdout; `service` is that of the active model, `away` as of `Remembered.get`.

    Raises:
        NotFoundError: the scenario of the arm is not there any more.
        StorageError: storage is away, and the scenario was not read before.
    """
    if arm is None:
        return Turn(service, experiment=ExperimentArm(experiment.name, experiment.version, HOLDOUT))
    scenario = None
    if arm.scenario is not None:
        try:
            scenario = await service.scenarios.get(arm.scenario, away)
        except NotFoundError as error:
            raise _of_arm(error, experiment, arm) from None
    if experiment.settings.stopped:
        return Turn(service, scenario)
    beside = service if arm.model_id is None else models_of(request).hall.beside(arm.model_id)
    if beside is None:
        return Turn(service, scenario, unserved=(short_name(experiment.name), arm.name))
    return Turn(beside, scenario, ExperimentArm(experiment.name, experiment.version, arm.name))


async def posed(
    request: Request, service: Service, query: Query, scenario: str | None, experiment: str | None, away: bool = False
) -> tuple[Service, Query]:
    """Who answers, and the question with the rules of a scenario, or of the arm that the user is in, beside its own; `away` as of
    `Remembered.get`.

    Raises:
        NotFoundError, StorageError: as of `experiment_of` and `turn_of`.
        InvalidRequestError: those would be too many rules.
    """
    if experiment is None:
        return service, await under(service, scenario, query, away)
    service, (query,) = await posed_together(request, service, [query], experiment, away)
    return service, query


async def posed_together(
    request: Request, service: Service, queries: list[Query], experiment: str, away: bool = False
) -> tuple[Service, list[Query]]:
    """`posed` for several questions of one user."""
    found = await experiment_of(request, experiment, away)
    arm = found.arm_of(queries[0].user_id)
    turn = await turn_of(request, service, found, arm, away)
    return turn.service, [turn.question(query) for query in queries]


async def turns_of(request: Request, service: Service, experiment: Experiment, query: Query) -> dict[str, Turn]:
    """What those of each arm get, by its name, for a question that is asked for many.

    Raises:
        NotFoundError, StorageError: as of `turn_of`.
        InvalidRequestError: the rules of an arm cannot be followed, whoever it is asked for.
    """
    turns: dict[str, Turn] = {}
    for arm in experiment.parts:
        turn = await turn_of(request, service, experiment, arm)
        try:
            turn.service.recommender.check(turn.question(query))
        except InvalidRequestError as error:
            raise _of_arm(error, experiment, arm) from None
        turns[HOLDOUT if arm is None else arm.name] = turn
    return turns


def either(scenario: str | None, experiment: str | None, where: str = "", scenario_field: str = "scenario") -> None:
    """Raises InvalidRequestError if a request names both; `where` is what stands before their names."""
    if scenario is not None and experiment is not None:
        message = "scenario and experiment cannot both be given: the arms of an experiment name their scenarios"
        fields = [f"{where}{scenario_field}", f"{where}experiment"]
        raise InvalidRequestError(message, [{"field": field, "message": message} for field in fields])


def for_a_user(user_id: str | None, experiment: str | None) -> None:
    """Raises InvalidRequestError if a request names an experiment and no user."""
    if experiment is not None and user_id is None:
        message = "an experiment divides users by their ids: user_id must be given"
        raise InvalidRequestError(f"experiment: {message}", [{"field": "experiment", "message": message}])


def _of_arm(error: LongwaveError, experiment: Experiment, arm: Arm | None) -> LongwaveError:
    """The error, saying whose fault it is."""
    error.detail = f"experiment {experiment.name!r}, arm {HOLDOUT if arm is None else arm.name!r}: {error.detail}"
    return error
