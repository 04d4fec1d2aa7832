"""Prices of tokens by model, from a table of the user's; gymq has none of its own."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any

import msgspec

from gymq.wire.calls import Usage
from gymq.yaml_file import convert, load_yaml

#: Tokens that a price is of.
PER = 1_000_000

_Amount = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The price of a million tokens of one model.

    Args:
        input: of prompts.
        output: of answers.
        cached_input: of the part of prompts that the server had cached; None: as `input`.
    """

    input: _Amount
    output: _Amount
    cached_input: _Amount | None = None

    def of(self, usage: Usage) -> float:
        """Return the cost of tokens.

        Args:
            usage: how many; `input_tokens` holds the cached ones too.
        """
        cached = min(usage.cached_tokens, usage.input_tokens)
        cheap = self.input if self.cached_input is None else self.cached_input
        return ((usage.input_tokens - cached) * self.input + cached * cheap + usage.output_tokens * self.output) / PER


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of prices.

    Args:
        models: by a model's SPEC, by what follows the colon in it, or by a pattern (`gpt-*`) of either. A name counts before
            patterns, and of these the first.
        currency: what the prices are in; it is only repeated.
    """

    models: dict[str, Price]
    currency: Annotated[str, msgspec.Meta(min_length=1, max_length=10)] = "USD"

    @classmethod
    def read(cls, given: str | Mapping[str, Any]) -> Prices:
        """Return a table of prices.

        Args:
            given: the table as plain values, or the path of a YAML or JSON file that holds it.

        Raises:
            UsageError: the file cannot be read, or holds something else.
        """
        remedy = "each of models: has input: and output:, of a million tokens"
        return load_yaml(given, cls, remedy) if isinstance(given, str) else convert(dict(given), cls, "prices", remedy)

    def price(self, spec: str) -> Price | None:
        """Return the price of a model, None if the table has none.

        Args:
            spec: the model's SPEC.
        """
        names = (spec, spec.partition(":")[2])
        exact = next((self.models[name] for name in names if name in self.models), None)
        if exact is not None:
            return exact
        return next((price for pattern, price in self.models.items() if any(fnmatchcase(n, pattern) for n in names)), None)

    def cost(self, spec: str, usage: Usage) -> float | None:
        """Return the cost of a model's tokens, None if the table has no price of it.

        Args:
            spec: the model's SPEC.
            usage: its tokens.
        """
        price = self.price(spec)
        return None if price is None else price.of(usage)
