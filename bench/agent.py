"""An agent of the benchmark's own."""

from __future__ import annotations

from gymq.api.agent import Action, Agent, Generate, Respond, View


class Talker(Agent):
    """Lets model and environment speak in turn; an answer that its length ended goes on like any other, since all have one."""

    name = "bench_talker"

    def act(self, view: View) -> Action:
        """Decide what comes next; see `Agent.act`."""
        return Respond() if view.messages.last.role == "assistant" else Generate()
