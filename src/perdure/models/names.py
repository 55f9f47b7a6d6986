"""Which model answers to a name.

Rules. The map wins over everything; its targets are not mapped again, so there are no circles. A name that nobody knows
is answered all the same, by the default model or whoever is there first, and the log says so once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from logging import Logger
from typing import TypeVar

import msgspec

from perdure.errors import RunFailure
from perdure.ids import Clock
from perdure.models.base import Model

T = TypeVar("T")

BUILTIN = "builtin"
"""The built-in model's key among the models, and a name that always means it."""
LISTED_SECONDS = 60.0
"""How long an upstream's list is believed."""
FAILED_SECONDS = 10.0
"""How long an upstream that did not give its list is left alone."""
FETCH_SECONDS = 2.0
"""How long a list may keep a run waiting."""
NAMES_LOGGED = 1000
"""After so many unknown names the log has said enough."""

_NOTHING = (
    "There is no model: neither an upstream nor a built-in model is configured. "
    "Set PERDURE_UPSTREAM_URL to an OpenAI-compatible server, or PERDURE_BUILTIN_MODEL."
)

Choice = tuple[Model, str]
"""Who answers, and the name to send."""


class _Listing(msgspec.Struct):
    """What an upstream listed last, until when that counts, and whether the last fetch failed."""

    names: list[str] = []
    until: float = 0.0
    failed: bool = False
    lock: asyncio.Lock = msgspec.field(default_factory=asyncio.Lock)


class ModelRegistry:
    """All models. `models` has each upstream under its name, and the built-in one under `builtin`.

    `upstream_names` gives the order of asking; `builtin` is the name that the built-in model goes by, None without one.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        upstream_names: Sequence[str],
        builtin: str | None,
        *,
        model_map: Mapping[str, str],
        default_model: str | None,
        clock: Clock,
        log: Logger,
        fetch_seconds: float = FETCH_SECONDS,
    ) -> None:
        self._models = models
        self._builtin = builtin
        self._map = model_map
        self._default = default_model
        self._clock = clock
        self._log = log
        self._fetch_seconds = fetch_seconds
        self._listings = {name: _Listing() for name in upstream_names}
        self._logged: set[str] = set()

    @property
    def models(self) -> Mapping[str, Model]:
        """All models: upstreams under their names, the built-in one under `builtin`."""
        return self._models

    async def resolve(self, requested: str) -> Choice:
        """Return who answers to a name, and the name to send. Raises RunFailure when there is no model at all."""
        mapped = map_name(self._map, requested)
        name = requested if mapped is None else mapped
        found = await self._find(name)
        if found is None and mapped is None and self._default is not None:
            mapped_default = map_name(self._map, self._default)
            name = self._default if mapped_default is None else mapped_default
            found = await self._find(name)
            self._say_once(requested, f"the default model '{name}'")
        return found or self._first(requested, name)

    async def list_models(self) -> list[tuple[str, str]]:
        """Return (id, owned_by) of what can be asked for: built-in, map, upstreams, each name once."""
        found: dict[str, str] = {}
        if self._builtin is not None:
            found[self._builtin] = "perdure"
        for name in self._map:
            if not set(name) & set("*?["):
                found.setdefault(name, "perdure")
        await self._fetch_all()
        for upstream, listing in self._listings.items():
            for name in () if listing.failed else listing.names:
                found.setdefault(name, upstream)
        return list(found.items())

    async def close(self) -> None:
        """Close every model."""
        for model in self._models.values():
            await model.close()

    async def _find(self, name: str) -> Choice | None:
        """Return who knows a name that is not to be mapped."""
        if self._builtin is not None and name in {self._builtin, BUILTIN}:
            return self._models[BUILTIN], self._builtin
        prefix, slash, rest = name.partition("/")
        if slash and rest:
            if prefix in self._listings:
                return self._models[prefix], rest
            if prefix == BUILTIN and self._builtin is not None:
                return self._models[BUILTIN], self._builtin
        await self._fetch_all()
        for upstream, listing in self._listings.items():
            if name in listing.names:
                return self._models[upstream], name
        return None

    def _first(self, requested: str, name: str) -> Choice:
        """Hand a name that nobody knows to whoever is there first."""
        for upstream in self._listings:
            self._say_once(requested, f"upstream '{upstream}', asked for '{name}'")
            return self._models[upstream], name
        if self._builtin is not None:
            self._say_once(requested, f"the built-in model '{self._builtin}'")
            return self._models[BUILTIN], self._builtin
        raise RunFailure(_NOTHING)

    def _say_once(self, requested: str, by: str) -> None:
        if requested not in self._logged and len(self._logged) < NAMES_LOGGED:
            self._logged.add(requested)
            self._log.info("model '%s' is not known here: answered by %s", requested, by)

    async def _fetch_all(self) -> None:
        await asyncio.gather(*(self._fetch(name, listing) for name, listing in self._listings.items()))

    async def _fetch(self, upstream: str, listing: _Listing) -> None:
        """Bring one list up to date, once for all who wait. After a failure the old names still show the way."""
        if self._clock.now() < listing.until:
            return
        async with listing.lock:
            if self._clock.now() < listing.until:
                return
            try:
                async with asyncio.timeout(self._fetch_seconds):
                    listing.names = await self._models[upstream].list_models()
            except (RunFailure, TimeoutError) as error:
                listing.failed, keep = True, FAILED_SECONDS
                late = f"no answer in {self._fetch_seconds:g} seconds"
                why = error.message if isinstance(error, RunFailure) else late
                self._log.warning("models of upstream '%s' are not listed: %s", upstream, why)
            else:
                listing.failed, keep = False, LISTED_SECONDS
            listing.until = self._clock.now() + keep


def map_name(model_map: Mapping[str, T], name: str) -> T | None:
    """Return the target of the exact name, else of the first pattern that fits."""
    if name in model_map:
        return model_map[name]
    return next((target for pattern, target in model_map.items() if fnmatchcase(name, pattern)), None)


def matches(patterns: str, name: str) -> bool:
    """Say whether a name fits one of the patterns, which have commas between."""
    return any(fnmatchcase(name, pattern.strip()) for pattern in patterns.split(",") if pattern.strip())
