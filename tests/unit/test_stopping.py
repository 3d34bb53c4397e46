"""The stopping rules on the published perplexity series, and the guards."""

import pytest

from editing_core.editors.stopping import (
    StopSettings,
    best_score,
    collapse_guard,
    every_rule,
    monotone_rule,
    not_finite,
    perplexity_rule,
    small_change_rule,
)


def series(optimised, spread):
    """Rows of k = 1, 2, ... from the two printed series; the last optimised value has no partner."""
    pairs = zip(optimised.split(), spread.split(), strict=False)
    return [
        {"k": k, "ppl_optimised": float(o), "ppl_spread": float(s), "delta_ppl": float(s) - float(o)}
        for k, (o, s) in enumerate(pairs, start=1)
    ]


# Printed in Tables 6 to 8 of arXiv:2503.11895; None: no row of the series meets the rule. The paper's choice under
# the second rule is the last printed row where |delta p| falls to the end.
PUBLISHED = {
    "CF GPT-2 XL MEMIT": ("1.04 1.03 1.02 1.02 1.02", "11360.64 78.15 10.14 1.49", 4, None, None),
    "CF GPT-2 XL PMET": (
        "12598.80 1333.32 97.51 15.96 3.90 1.81 1.42 1.35 1.32 1.31",
        "116384.51 26852.75 5123.07 2045.77 228.44 50.77 22.44 12.10 3.03 1.73",
        10,
        None,
        None,
    ),
    "CF GPT-J MEMIT": ("1.03 1.02 1.02 1.01 1.01", "2.25 1.05 2.88 1.04", 2, 2, None),
    "CF GPT-J PMET": ("1.08 1.06 1.06 1.06 1.06", "2.24 5.29 1.11 1.08", 3, 1, 4),
    "CF Llama-2 PMET": ("1.09 1.14 1.14 1.14 1.14", "4.41 1.23 1.30 1.14", 2, 2, 3),
    "CF Llama-2 MEMIT": ("1.01 16.77 8.40 1.89 2.37", "199.80 4681.01 884.21 1381.59", None, 1, None),
    "CF-739 GPT-2 XL NA-MEMIT": ("1.07 1.04 1.03 1.03 1.03", "1248.69 52.51 3.67 1.22", 4, None, None),
    "ZsRE GPT-2 XL MEMIT": ("1.02 1.02 1.02 1.02 1.02", "2035.34 40.41 1.05 1.03", 3, None, 4),
    "ZsRE GPT-J MEMIT": ("1.01 1.02 1.02 1.01 1.01", "2.68 1.03 1.02 1.01", 2, 3, 3),
    "ZsRE GPT-J PMET": ("1.10 1.06 1.06 1.06 1.06", "5.20 1.14 1.08 1.06", 2, None, 3),
    "ZsRE Llama-2 PMET": ("1.07 1.05 1.05 1.05 1.05", "7.40 1.12 1.07 1.06", 2, None, 3),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_rules_choose_the_published_rows(name):
    optimised, spread, first, second, third = PUBLISHED[name]
    found = every_rule(series(optimised, spread))
    chosen = {rule: decision.k if decision else None for rule, decision in found.items()}
    assert chosen == {"perplexity": first, "monotone": second, "small-change": third, "best": None}


def test_live_and_afterwards_agree():
    rows = series("1.03 1.02 1.02 1.01 1.01", "2.25 1.05 2.88 1.04")
    for rule in ("perplexity", "monotone", "small-change", "none"):
        settings = StopSettings(iterations=4, stop=rule)
        live = next((d for n in range(1, 5) if (d := settings.decide(rows[:n]))), None)
        assert live == settings.decide(rows)


def test_the_monotone_rule_keeps_the_row_before_an_equal_gap():
    rows = series("1 1 1", "5 3 3")
    assert monotone_rule(rows).k == 2
    assert perplexity_rule(rows) is None
    assert small_change_rule(rows).k == 3


def row(k, **columns):
    return {"k": k, "delta_ppl": 5.0, "ppl_spread": 6.0, **columns}


def test_the_unedited_row_takes_no_part():
    rows = [{"k": 0, "delta_ppl": None, "ppl_spread": 4e4, "score_success": 99.0}, row(1, score_success=50.0)]
    assert perplexity_rule(rows, 10).k == 1
    assert small_change_rule(rows, 1e6) is None
    assert best_score(rows).k == 1


def test_the_earliest_of_equal_scores_is_best():
    rows = [row(k, score_success=s) for k, s in ((1, 50.0), (2, 80.0), (3, 80.0), (4, float("nan")))]
    assert best_score(rows).k == 2
    assert best_score([row(1, score_success=None)]) is None


@pytest.mark.parametrize(
    ("perplexities", "factor", "kept"),
    [
        ((10, 11, 12), 3, None),
        ((10, 29, 80), 3, None),
        ((10, 31, 32), 3, 0),
        ((10, 11, 40), 3, 1),
        ((10, 11, float("inf")), 3, 1),
        ((10, 11, float("nan")), 3, 1),
        ((10, 1e6, 2e6), 0, None),
        ((10, None, 1e6), 3, None),
    ],
)
def test_collapse_guard(perplexities, factor, kept):
    rows = [row(k, collapse_ppl=p) for k, p in enumerate(perplexities)]
    decision = collapse_guard(rows, factor)
    assert (decision.k if decision else None) == kept


def test_the_guards_roll_back_to_the_best_finished_iteration():
    scores = (None, 40.0, 90.0, 70.0, 1.0)
    rows = [
        row(k, score_success=s, collapse_ppl=p) for k, (s, p) in enumerate(zip(scores, (4, 4, 4, 5, 99), strict=True))
    ]
    decision = collapse_guard(rows, 3)
    assert (decision.k, decision.rule) == (2, "collapse")
    assert "rolled back to iteration 2" in decision.reason
    assert not_finite(rows[:4], 4).k == 2
    assert not_finite([row(0)], 1).reason.endswith("rolled back to the unedited model.")


def test_the_guard_comes_before_the_rule():
    rows = [row(0, collapse_ppl=4), row(1, collapse_ppl=400) | {"delta_ppl": 0.0}]
    assert StopSettings(iterations=3).decide(rows).rule == "collapse"
    assert StopSettings(iterations=3, collapse_factor=0.0).decide(rows).rule == "perplexity"


def test_using_up_the_iterations_says_how_far_the_rule_was():
    reason = StopSettings(iterations=2).conclude([row(1), row(2)]).reason
    assert reason == "All 2 iterations were used. |delta p| = 5 is still above 1."
