"""`tetravit data check`: what is wrong with the files of a data set, before anything is trained on them."""

from tetravit.data.audit.check import Audit, check_data
from tetravit.data.audit.findings import KINDS, Finding

__all__ = ["KINDS", "Audit", "Finding", "check_data"]
