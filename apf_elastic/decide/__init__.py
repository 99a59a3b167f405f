"""The pure core: `decide(world, settings) -> Plan`."""

from apf_elastic.decide.plan import decide
from apf_elastic.decide.steps import PolicyError
from apf_elastic.decide.trial import TrialResult, try_document, try_policy

__all__ = ["PolicyError", "TrialResult", "decide", "try_document", "try_policy"]
