"""`tetravit data check`: find faults in the files of a data set before training."""

from tetravit.data.audit.check import Audit, check_data
from tetravit.data.audit.findings import KINDS, Finding

__all__ = ["KINDS", "Audit", "Finding", "check_data"]
