"""Neighbor assistance: how neighbors take part in an edit, beside the facts themselves.

NA and NAP keep one neighbor's answer in the objective: the shift that makes the new object likely must not,
at the neighbor's own subject, make its answer unlikely. Source: Baghel et al. 2025,
https://arxiv.org/abs/2503.11895 (section 5). Neighbor keys and subject statistics are extensions of ours;
they protect keys in the closed form instead.
"""

from dataclasses import dataclass

from editing_core.settings import Settings, setting


@dataclass(frozen=True)
class Assist(Settings):
    """How edit neighbors and statistics of subjects take part. As made, nothing does."""

    neighbors: str = setting(
        "off",
        "off; na: an edit neighbor's answer is kept in the objective; nap: the same behind a random prefix",
        choices=("off", "na", "nap"),
    )
    weighting: str = setting(
        "code",
        "paper: the neighbors' mean loss is added with its weight; code: all rows share one mean, as published",
        choices=("code", "paper"),
    )
    weight: float = setting(1.0, "Weight of the neighbors' term", 0.0, 100.0)
    count: int = setting(1, "Edit neighbors per fact", 1, 10)
    choice: str = setting(
        "first", "Which of the known neighbors assists: the first, or a random one", choices=("first", "random")
    )
    minimum: int = setting(2, "Neighbors the model must know for a fact to be assisted", 1, 10)
    keys: float = setting(
        0.0, "Ours: mu, how strongly the edit neighbors' keys are protected in the spread; 0 is off", 0.0, 1e6
    )
    statistics: str = setting(
        "tokens",
        "Which keys are protected: those of all tokens; ours: mixed with keys of subjects; scaled is its control, the "
        "same amount of protection from all tokens",
        choices=("tokens", "subjects", "scaled"),
    )
    token_share: float = setting(0.3, "Weight of the statistics of all tokens when subjects are mixed in", 0.0, 100.0)
    subject_share: float = setting(1.0, "Weight of the statistics of subjects", 0.0, 100.0)

    @property
    def uses_neighbors(self) -> bool:
        """Whether edit neighbors are needed."""
        return self.neighbors != "off" or self.keys > 0

    @property
    def name(self) -> str:
        """The method in short, as a suffix for tables: "" when nothing assists."""
        parts = [self.neighbors.upper()] if self.neighbors != "off" else []
        if parts and (self.weighting, self.weight) != ("code", 1.0):
            parts[0] += f" ({self.weighting}, w {self.weight:.3g})"
        if self.keys:
            parts.append(f"neighbor keys ({self.count}, mu {self.keys:g})")
        if self.statistics != "tokens":
            parts.append({"subjects": "subject statistics", "scaled": "scaled statistics"}[self.statistics])
        return " + ".join(parts)
