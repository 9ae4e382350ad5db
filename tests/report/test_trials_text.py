from __future__ import annotations

import dataclasses

import click
import pytest

from precdoctor.report import trials_text
from tests.report import tried

EIGHTY = """\
Cures, tried
autocast cures it: EDQ 0.000 -> 0.998; travel 0.98 of float32's, 0.12 off. So do
master-weights, kahan and stochastic-rounding.

cure                  outcome             EDQ    loss    travel    time    bytes
--------------------  ----------------  -----  ------  --------  ------  -------
untreated                               0.000   2.370     0.000   1.00×        8
float32                                  1.00   2.107      1.00   1.31×       16
autocast              ✓ cured            1.00   2.093      0.98   1.42×       16
master-weights        ✓ cured            1.00   2.105      0.98   1.18×       12
kahan                 ✓ cured            1.02   2.096      0.98   1.11×       10
stochastic-rounding   ✓ cured            0.97   2.088      0.98   1.25×        8
group-lr x22.6        ↑ helped           0.91   2.194     21.00   1.00×        8
float32…ormalisation  · no effect       0.000   2.387     0.000   1.00×        8
group-lr x10          · no effect       0.040   2.390     -0.40   1.00×        8
reinit x0.1           ✗ harmed          0.050   3.191      0.10   1.00×        8
eps 1e-05             ✗ harmed              -     nan         -   1.00×        8
loss-scaling          ? does not apply      -       -         -       -        -
EDQ: of the parameters that were ill, 1 = descent as intended, 0 = frozen.
loss: mean of the last quarter.  travel: of the parameters that were ill, 1 = as
far as in float32.  time: of a step, untreated = 1.  bytes: held per parameter
after a step.

  autocast: EDQ 0.000 -> 0.998; travel 0.98 of float32's, 0.12 off.
  master-weights: EDQ 0.000 -> 0.998; travel 0.98 of float32's, 0.14 off.
  kahan: EDQ 0.000 -> 1.02 (net); travel 0.99 of float32's, 0.21 off.
  stochastic-rounding: EDQ 0.000 -> 0.97 (net); noise 0.61 off float32's travel.
  group-lr x22.6: EDQ 0.000 -> 0.91, but the weights travel 21 times as far as
    in float32.
  float32-island on
    decoder.layers.11.feed_forward.experts.63.activation_and_normalisation: it
    acts on no weight.
  group-lr x10: EDQ 0.000 -> 0.04; 28 ups against 129 downs; mean 0.9938 where
    float32 goes to 1.0015.
  reinit x0.1: loss 0.9 ± 0.05 above the untreated run's; 99 % of the updates
    are lost.
  eps 1e-05: the loss is not finite from step 21.
  loss-scaling: the script failed at step 1. (RuntimeError: expected
    <script>alert('mat1')</script> and mat2 to have the same dtype, got float)"""

WIDE = """\
Cures, tried
autocast cures it: EDQ 0.000 -> 0.998; travel 0.98 of float32's, 0.12 off. So do master-weights, kahan and
stochastic-rounding.

cure                       outcome                      EDQ    loss      difference    travel    time    bytes
-------------------------  ----------------  --------------  ------  --------------  --------  ------  -------
untreated                                             0.000   2.370               -     0.000   1.00×        8
float32                                                1.00   2.107  -0.312 ± 0.004      1.00   1.31×       16
autocast                   ✓ cured            0.000 -> 1.00   2.093  -0.312 ± 0.004      0.98   1.42×       16
master-weights             ✓ cured            0.000 -> 1.00   2.105  -0.312 ± 0.004      0.98   1.18×       12
kahan                      ✓ cured            0.000 -> 1.02   2.096  -0.312 ± 0.004      0.98   1.11×       10
stochastic-rounding        ✓ cured            0.000 -> 0.97   2.088  -0.312 ± 0.004      0.98   1.25×        8
group-lr x22.6             ↑ helped           0.000 -> 0.91   2.194    -0.11 ± 0.02     21.00   1.00×        8
float32-i…d_normalisation  · no effect       0.000 -> 0.000   2.387               0     0.000   1.00×        8
group-lr x10               · no effect       0.000 -> 0.040   2.390  +0.001 ± 0.003     -0.40   1.00×        8
reinit x0.1                ✗ harmed          0.000 -> 0.050   3.191    +0.90 ± 0.05      0.10   1.00×        8
eps 1e-05                  ✗ harmed                       -     nan             nan         -   1.00×        8
loss-scaling               ? does not apply               -       -               -         -       -        -
EDQ: of the parameters that were ill, 1 = descent as intended, 0 = frozen.  loss: mean of the last quarter.
difference: of this loss to the untreated run's, ± standard error.  travel: of the parameters that were ill, 1
= as far as in float32.  time: of a step, untreated = 1.  bytes: held per parameter after a step."""


def test_a_terminal_of_80_columns_gets_the_whole_section() -> None:
    assert click.unstyle(trials_text.render(tried.trials(), 80)) == EIGHTY


def test_a_wide_terminal_gets_differences_and_what_was_before() -> None:
    shown = click.unstyle(trials_text.render(tried.trials(), 110))
    assert shown.partition("\n\n  autocast:")[0] == WIDE


@pytest.mark.parametrize("width", range(60, 121, 6))
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    shown = click.unstyle(trials_text.render(tried.trials(), width))
    assert max(map(len, shown.splitlines())) <= width


def test_outcomes_are_coloured() -> None:
    shown = trials_text.render(tried.trials(), 100)
    assert click.style("✓ cured", fg="green") in shown
    assert click.style("✗ harmed", fg="red") in shown


def test_before_is_not_said_of_a_cure_judged_by_other_parameters() -> None:
    untreated, _, autocast, *_ = tried.trials()
    other = dataclasses.replace(autocast, subjects=("norm.weight",))
    assert "0.000 -> 1.00" in trials_text.render((untreated, autocast), 120)
    assert "0.000 -> 1.00" not in trials_text.render((untreated, other), 120)


def test_names_and_errors_cannot_steer_the_terminal() -> None:
    nasty = dataclasses.replace(tried.trials()[-1], label="eps \x1b[2J", error="\x1b[31mValueError\n")
    assert "\x1b" not in click.unstyle(trials_text.render((nasty,), 80))


def test_without_a_cure_that_was_tried_there_is_no_section() -> None:
    assert trials_text.render((), 80) == ""
    assert trials_text.render(tried.trials()[:2], 80) == ""
