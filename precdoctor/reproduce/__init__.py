"""Reproduce known cases: run sample programs, and compare what is seen with what is known of them."""

from precdoctor.reproduce.catalogue import SCENARIOS, reproduce
from precdoctor.reproduce.scenario import Claim, Options, Outcome, Scenario, Seen, sample_models

__all__ = ["SCENARIOS", "Claim", "Options", "Outcome", "Scenario", "Seen", "reproduce", "sample_models"]
