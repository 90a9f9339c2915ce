"""The public conformance suites: what each contract promises, as checks that a third party can run on its own class."""

from .aggregator import aggregator_checks, check_aggregator
from .balancer import balancer_checks, check_balancer
from .calibrator import calibrator_checks, check_calibrator
from .function import check_function, check_reduced, function_checks, is_loss_function
from .list_loss import check_list_loss, list_loss_checks
from .loss import check_loss, loss_checks
from .method import check_method, method_checks
from .objective import check_objective, objective_checks
from .optimizer import check_optimizer, optimizer_checks
from .pair_loss import check_pair_loss, pair_loss_checks
from .policy_loss import check_policy_loss, policy_loss_checks
from .preference import check_preference, preference_checks
from .probe import check_probe, probe_checks
from .sampler import check_sampler, sampler_checks
from .schedule import check_schedule, schedule_checks
from .token_loss import check_token_loss, token_loss_checks
from .value_loss import check_value_loss, value_loss_checks
from .wrapper import check_wrapper, wrapper_checks

__all__ = [
    "aggregator_checks",
    "balancer_checks",
    "calibrator_checks",
    "check_aggregator",
    "check_balancer",
    "check_calibrator",
    "check_function",
    "check_list_loss",
    "check_loss",
    "check_method",
    "check_objective",
    "check_optimizer",
    "check_pair_loss",
    "check_policy_loss",
    "check_preference",
    "check_probe",
    "check_reduced",
    "check_sampler",
    "check_schedule",
    "check_token_loss",
    "check_value_loss",
    "check_wrapper",
    "function_checks",
    "is_loss_function",
    "list_loss_checks",
    "loss_checks",
    "method_checks",
    "objective_checks",
    "optimizer_checks",
    "pair_loss_checks",
    "policy_loss_checks",
    "preference_checks",
    "probe_checks",
    "sampler_checks",
    "schedule_checks",
    "token_loss_checks",
    "value_loss_checks",
    "wrapper_checks",
]
