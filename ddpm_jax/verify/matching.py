"""Which call of a JAX layer is the partner of which call of a PyTorch one, and which arrays of theirs correspond."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ddpm_jax.errors import UserError, meant
from ddpm_jax.paths import listed, loosely, prefixes, renamed
from ddpm_jax.verify.recording import Call, Recording


@dataclass
class Matched:
    """Calls side by side, and those that stand alone."""

    pairs: list[tuple[Call, Call]] = field(default_factory=list)
    """(JAX's, PyTorch's), in PyTorch's order, which is that of execution."""
    alone_in_jax: list[str] = field(default_factory=list)
    alone_in_torch: list[str] = field(default_factory=list)

    @property
    def partners(self) -> dict[str, Call]:
        """JAX name -> PyTorch's call."""
        return {ours.name: theirs for ours, theirs in self.pairs}


def match(ours: Recording, theirs: Recording, names: Mapping[str, str], ignore: Sequence[str] = ()) -> Matched:
    """Calls by name: as renamed by `names`, or else as written, "layers_0" being "layers.0", and a loop over a stack its layers.

    Raises:
        UserError: an entry of `names` that no layer has, on either side.
    """
    check_names(names, ours, theirs)
    ours_left = [call for call in ours.calls if call.path and not listed(call.path, ignore)]
    theirs_left = [call for call in theirs.calls if call.path and not listed(call.path, ignore)]
    partner_of: dict[str, Call] = {}
    for spelling in (str, loosely):
        taken = {call.name for call in partner_of.values()}
        free = {_spelt(call.path, call, spelling): call for call in theirs_left if call.name not in taken}
        for call in ours_left:
            partner = free.get(_spelt(renamed(call.path, names)[0], call, spelling))
            if call.name not in partner_of and partner is not None:
                partner_of[call.name] = partner
    partner_of |= _stacks(ours_left, theirs_left, partner_of, names)
    theirs_order = {call.name: index for index, call in enumerate(theirs_left)}
    by_name = ours.by_name()
    pairs = sorted(partner_of.items(), key=lambda pair: theirs_order[pair[1].name])
    taken = {call.name for call in partner_of.values()}
    return Matched(
        [(by_name[name], call) for name, call in pairs],
        [call.name for call in ours_left if call.name not in partner_of],
        [call.name for call in theirs_left if call.name not in taken],
    )


def paired(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str]]:
    """Places in two structures that correspond: alike in name; or, where none is and both have as many, in order."""
    common = [(place, place) for place in ours if place in set(theirs)]
    if common:
        return common
    if len(ours) == len(theirs) or 1 in (len(ours), len(theirs)):
        return list(zip(ours, theirs, strict=False))
    return []


def check_names(names: Mapping[str, str], ours: Recording, theirs: Recording) -> None:
    """See that every entry of a map of names names something on both sides: a layer, or an array of one.

    Raises:
        UserError: one does not.
    """
    known = {
        side: list(dict.fromkeys(prefix for path in _paths(recording) for prefix in prefixes(path)))
        for side, recording in (("JAX", ours), ("PyTorch", theirs))
    }
    spelt = set(map(loosely, known["PyTorch"]))
    made: dict[str, set[str]] = {}
    for path in known["JAX"]:
        name, entry = renamed(path, names)
        made.setdefault(entry or "", set()).add(name)
    for name, theirs_name in names.items():
        if not name or not all(known.values()):
            continue
        if name not in made:
            raise _unknown(name, "JAX", known["JAX"])
        if theirs_name and not set(map(loosely, made[name])) & spelt:
            raise _unknown(theirs_name, "PyTorch", known["PyTorch"])


def _paths(recording: Recording) -> list[str]:
    return [*dict.fromkeys(call.path for call in recording.calls), *recording.layers, *recording.arrays]


def _unknown(name: str, side: str, known: list[str]) -> UserError:
    return UserError(
        f"names holds {name!r}, which is no layer of the {side} side.{meant(name, known)} It has "
        f"{', '.join(known[:40])}{' and more' if len(known) > 40 else ''}."
    )


def _spelt(path: str, call: Call, spelling: Callable[[str], str]) -> str:
    return spelling(path) + call.name[len(call.path) :]


def _stacks(
    ours: Sequence[Call], theirs: Sequence[Call], taken: Mapping[str, Call], names: Mapping[str, str]
) -> dict[str, Call]:
    """Turns of a loop over a stack: the k-th call of "layers.attn" is the call of "layers.k.attn"."""
    calls: dict[str, list[Call]] = {}
    for call in ours:
        calls.setdefault(call.path, []).append(call)
    free = {call.name: call for call in theirs} | {call.name: None for call in taken.values()}
    found: dict[str, Call] = {}
    for path, turns in calls.items():
        if turns[0].name in taken or len(turns) < 2:
            continue
        parts = renamed(path, names)[0].split(".")
        for depth in range(len(parts), 0, -1):
            theirs_names = [".".join([*parts[:depth], str(k), *parts[depth:]]) for k in range(len(turns))]
            partners = [free.get(name) for name in theirs_names]
            if all(partners):
                found |= {turn.name: partner for turn, partner in zip(turns, partners, strict=True) if partner}
                break
    return found
