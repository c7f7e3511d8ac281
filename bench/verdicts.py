"""Whether the figures keep what we promise.

The worst group of a promise decides. A promise is kept where all groups and peers that it speaks of
were measured and their intervals lie on the right side of the bound; one group that lies on the
wrong side breaks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .cases import Group
from .estimates import Estimate
from .memory import Peak, as_results
from .peers import WITHOUT_PGT, heading_of
from .requirements import REQUIREMENTS, Requirement
from .result import MISSING, Result

NOT_MEASURED, MISSED, OPEN, KEPT, AIM_MET = (
    "not measured",
    "missed",
    "open",
    "promise kept",
    "aim met",
)
WORST_FIRST = (MISSED, OPEN, KEPT, AIM_MET)


@dataclass(frozen=True)
class Verdict:
    """A promise, and the group that comes closest to breaking it or breaks it most.

    Attributes:
        missing: what would have to be measured before it could be called kept.
    """

    requirement: Requirement
    ratio: Estimate | None = None
    group: Group | None = None
    over: str | None = None
    missing: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """How far the promise is kept."""
        if self.ratio is None:
            return NOT_MEASURED
        requirement = self.requirement
        if requirement.breaks_surely(self.ratio):
            return MISSED
        if self.missing or not requirement.keeps_surely(self.ratio, requirement.promise):
            return OPEN
        aim = requirement.aim
        return AIM_MET if aim is not None and requirement.keeps_surely(self.ratio, aim) else KEPT

    @property
    def words(self) -> str:
        """The state, and what leaves it open."""
        if self.state != OPEN:
            return self.state
        return f"{OPEN}: {f'without {join(self.missing)}' if self.missing else 'within the noise'}"

    @property
    def worst_case(self) -> str:
        """The group's case, and its type, mode and peer where the requirement names several."""
        if self.group is None:
            return "-"
        requirement, group = self.requirement, self.group
        dtype = group.dtype if len(requirement.dtypes) > 1 else ""
        mode = group.mode if len(requirement.modes) > 1 else ""
        over = heading_of(self.over) if self.over and len(requirement.over) > 1 else ""
        words = (f"{group.case.name} {group.size}", dtype, mode, over)
        return ", ".join(filter(None, words))


def judge(
    results: Sequence[Result],
    device: str = "cpu",
    keeps_memory: bool = False,
    peaks: Sequence[Peak] = (),
) -> list[Verdict]:
    """A verdict per requirement of that device and such an allocator."""
    times = {result.group: result for result in results}
    memory = {result.group: result for result in as_results(peaks)}
    return [
        worst(requirement, memory if requirement.of_memory else times)
        for requirement in REQUIREMENTS
        if requirement.is_asked(device, keeps_memory)
    ]


def worst(requirement: Requirement, results: dict[Group, Result]) -> Verdict:
    """The verdict of the group that fares worst under this requirement."""
    verdicts, missing = [], dict[str, None]()
    for group in requirement.groups:
        result = results.get(group)
        over = result.fastest(requirement.over) if result else None
        needed = {requirement.under, requirement.less or requirement.under}
        if result is None or over is None or not needed <= result.seconds.keys():
            missing[f"{group.case.name} {group.dtype}"] = None
            continue
        missing |= dict.fromkeys(map(heading_of, absent(requirement.over, result)))
        ratio = result.ratio(over, requirement.under, requirement.less)
        verdicts.append(Verdict(requirement, ratio, group, over))
    if not verdicts:
        return Verdict(requirement)
    sign = 1.0 if requirement.faster else -1.0

    def severity(verdict: Verdict) -> tuple[int, float]:
        assert verdict.ratio is not None
        return WORST_FIRST.index(verdict.state), sign * verdict.ratio.median

    return replace(min(verdicts, key=severity), missing=tuple(missing))


def absent(peers: Iterable[str], result: Result) -> list[str]:
    """Peers that have this mode and were not measured: not asked for, or without their package."""
    doing = {peer.name for peer in WITHOUT_PGT if result.group.mode in peer.modes}
    return [
        peer
        for peer in peers
        if peer in doing - result.seconds.keys()
        and result.skipped.get(peer, MISSING).endswith(MISSING)
    ]


def join(words: Sequence[str]) -> str:
    """A few of them, and how many more."""
    more = len(words) - 2
    return ", ".join(words[:2]) + (f" and {more} more" if more > 0 else "")
