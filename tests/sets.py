"""Which tests `make quick` leaves out, and what holds the others to it.

A test is marked by what its code names, with that of its fixtures and of the tests' functions behind it: a new one
falls in its set by itself. Where that does not show a process that it starts, it fails until it is marked by hand.
"""

import multiprocessing.process
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

TESTS = Path(__file__).parent
USES = {  # of a module, a class or a function: by mark
    "processes": {
        "edgewise.lab.sweep:run",
        "subprocess",
        "multiprocessing",
        "ray",
        "playwright.sync_api:sync_playwright",
        "distributed.two_ranks:TwoRanks",
    },
    "training": {
        "edgewise.lab.training.loop:train",
        "edgewise.lab.engines.batched_training:train_together",
    },
    "slow": {"edgewise.lab.report.page:write_report"},  # draws every figure
}
LEFT_OUT = tuple(USES)  # by `make quick`
SLOW = {  # neither, but seconds of work
    "test_a_checked_measurement_is_the_unchecked_one_with_evidence",
    "test_a_claim_does_not_hold_where_the_runs_do_not_show_it",
    "test_a_closure_that_raises_leaves_the_warmup_as_it_was",
    "test_a_compiled_network_is_measured_as_another_and_is_as_it_was",
    "test_a_constant_added_to_the_loss_changes_nothing",
    "test_a_constant_factor_of_the_loss_changes_nothing",
    "test_a_copy_goes_on_as_the_original_does",
    "test_a_first_update_that_says_nothing_is_waited_out",
    "test_a_flat_start_sharpens_until_it_meets_the_edge",
    "test_a_group_added_under_way_goes_along_with_its_own_target",
    "test_a_half_precision_model_is_measured_as_its_cast_copy",
    "test_a_loss_whose_double_backward_is_not_symmetric",
    "test_a_measurement_has_no_side_effect",
    "test_a_new_level_of_the_loss_is_no_reason_to_halve_for_ever",
    "test_a_presentation_that_lacks_something_is_damaged",
    "test_a_rate_that_is_found_is_right",
    "test_a_resumed_run_has_the_same_rates_bit_for_bit",
    "test_a_run_resumes_where_step_is_never_called",
    "test_a_second_network_that_only_the_loss_knows_is_bitwise_equal",
    "test_a_sharp_start_at_a_large_rate_loses_sharpness_and_then_meets_the_edge",
    "test_a_skipped_batch_changes_no_rate",
    "test_a_thousand_negative_dominated_spectra_without_a_sign_error",
    "test_a_thousand_updates_of_a_language_model_come_near_the_entropy_of_the_text",
    "test_a_thousandth_below_it_converges_and_above_it_diverges",
    "test_activations_neither_grow_nor_shrink_and_only_mup_outputs_shrink",
    "test_an_update_that_is_not_linear_has_no_limit",
    "test_at_a_low_target_a_run_is_that_without_a_warmup_bit_for_bit",
    "test_at_the_best_rate_it_comes_to_what_linear_warmup_does",
    "test_auto_goes_on_where_a_backward_fails_with_a_graph",
    "test_autocast_is_off_in_a_measurement_and_back_afterwards",
    "test_bad_input_is_one_line_and_exit_status_one",
    "test_critical_lr_says_that_there_is_no_rate",
    "test_damage_is_named_by_every_command_and_mended_by_the_one_that_trains",
    "test_edge_warmup_is_held_against_the_length_that_was_best_on_other_seeds",
    "test_every_config_survives_json",
    "test_figures_are_saved_as_png_and_pdf_and_leave_matplotlib_as_it_was",
    "test_in_float32_rounding_alone_is_seen",
    "test_it_trains_at_a_target_far_too_high_where_a_constant_rate_does_not",
    "test_measurements_with_sparse_gradients_are_those_with_dense_ones",
    "test_mup_outputs_fall_as_one_over_the_root_of_the_width",
    "test_no_flipped_bit_of_a_run_is_silent",
    "test_observing_inside_the_step_is_as_observing_before_it",
    "test_one_process_has_the_bits_of_a_plain_loop",
    "test_one_weight_comes_to_the_minimum_at_a_rate_fifty_times_critical",
    "test_preconditioned_sharpness_is_the_dense_symmetric_form",
    "test_probes_hold_two_copies_of_the_parameters",
    "test_random_matrices_have_their_dense_eigenvalues",
    "test_report_rebuilds_and_prints_the_findings",
    "test_restarts_go_on_beyond_the_basis",
    "test_shares_that_are_given_give_the_rates_of_a_closure_bit_for_bit",
    "test_sharpness_scales_with_the_loss",
    "test_the_default_device_and_dtype_change_nothing",
    "test_the_error_bar_holds_along_the_eigenvector_that_is_found",
    "test_the_forward_route_sees_the_masks_of_the_others_or_refuses",
    "test_the_interval_holds_the_critical_rate_of_all_batches_nineteen_times_of_twenty",
    "test_the_preconditioner_is_that_of_the_cast_optimizer",
    "test_the_rates_follow_the_optimizer_however_often_step_is_called",
    "test_the_same_rates_by_hand_end_at_the_same_bits",
    "test_the_share_is_exceeded_by_a_misjudged_measurement_at_most",
    "test_training_by_closures_is_bitwise_equal",
    "test_training_is_bitwise_equal_where_measurements_raise_and_the_loop_goes_on",
    "test_training_that_is_followed_is_bitwise_equal",
    "test_training_that_is_measured_in_turn_is_bitwise_equal",
    "test_trainings_in_two_threads_are_bitwise_equal",
    "test_two_optimizers_resume_with_a_warmup_each",
    "test_updates_scale_with_the_width_as_theory_says",
    "test_where_v_never_decays_a_warning_says_so",
    "test_with_the_factors_as_the_paper_lists_them_hidden_updates_grow_with_the_width",
}


def marks_of(functions: Iterable[FunctionType]) -> set[str]:
    """Return the marks for what a test runs: its function and its fixtures'."""
    used = used_by(functions)
    return {mark for mark, telling in USES.items() if used & telling}


def used_by(functions: Iterable[FunctionType]) -> set[str]:
    """Return what is named in the functions' code, and in the tests' functions that it names in turn."""
    waiting, seen, used = list(functions), set(), set()
    while waiting:
        function = waiting.pop()
        if function in seen or not Path(function.__code__.co_filename).is_relative_to(TESTS):
            continue
        seen.add(function)
        for thing in _named(function):
            used.add(name_of(thing))
            if isinstance(thing, FunctionType):
                waiting.append(thing)
    return used


def _named(function: FunctionType) -> Iterator[Any]:
    """The globals that a function names, and what it may name of a module among them."""
    names = set(_names_in(function.__code__))
    for name in names & function.__globals__.keys():
        thing = function.__globals__[name]
        yield thing
        if isinstance(thing, ModuleType):
            yield from (vars(thing)[attribute] for attribute in names & vars(thing).keys())


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def name_of(thing: Any) -> str:
    if isinstance(thing, ModuleType):
        return thing.__name__
    return f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', '')}"


@contextmanager
def no_process() -> Iterator[None]:
    """Fail where a process is started, but for those that name the source and the machine."""
    start = subprocess.Popen.__init__

    def refused(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a test that starts a process must be marked: @pytest.mark.processes")

    def but_for_names(process: Any, command: Any, *args: Any, **kwargs: Any) -> None:
        (start if command[0] in ("git", "uname") else refused)(process, command, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", but_for_names)
        patch.setattr(multiprocessing.process.BaseProcess, "start", refused)
        yield
