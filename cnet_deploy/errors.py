"""The package's exceptions. Each class carries the exit code that the command line ends with."""

from __future__ import annotations


class CnetDeployError(Exception):
    """Base of every error this package raises on purpose. The message is one line, fit for a person."""

    exit_code = 1


class CheckFailed(CnetDeployError):
    """The work was done and its check failed: outputs differ beyond the tolerance."""

    exit_code = 1


class Inconclusive(CnetDeployError):
    """The measurement is too noisy to decide."""

    exit_code = 3


class InputRefused(CnetDeployError):
    """The input is unreadable, hostile, inconsistent, or not of the CondenseNet family."""

    exit_code = 4


class OutputRefused(CnetDeployError):
    """The output can't be written where it was asked for. Nothing was written or replaced."""

    exit_code = 4


class Unavailable(CnetDeployError):
    """A backend, driver or compiler is missing. The message names it and says how to get it."""

    exit_code = 5
