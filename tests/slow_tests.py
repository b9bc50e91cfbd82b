"""What `make test` leaves out and `make check` runs: the expensive tests, and most cases of the long sweeps.

Every capability has tests that are not listed here. A name that is no test is an error, so that the list follows the
tests. A test is expensive from about two seconds of computing on; `pytest --durations=30 -m "not slow"` shows them.
"""

from __future__ import annotations

SLOW = [
    # programs that are killed or stopped, and started again
    "tests/data/test_prepare.py::test_killed_at_random_moments",
    "tests/test_kill.py::test_kills_change_nothing",
    "tests/test_study.py::test_a_stopped_study_goes_on_to_the_same_weights",
    "tests/test_study.py::test_rows_end_with_a_study_that_is_killed",
    "tests/training/test_checkpoint.py::test_the_command_stops_on_sigterm_and_goes_on",
    # several processes
    "tests/test_examples.py",
    "tests/training/test_together.py::test_a_checkpoint_is_gone_on_with_in_any_layout",
    "tests/training/test_together.py::test_algorithm_1_together",
    "tests/training/test_together.py::test_bf16",
    "tests/training/test_together.py::test_compiled",
    "tests/training/test_together.py::test_distillation_and_activation_checkpointing",
    "tests/training/test_together.py::test_fifty_steps_are_those_of_one_process",
    "tests/training/test_together.py::test_going_on_is_exact_with_four_processes",
    "tests/training/test_together.py::test_memory_of_one_process_that_runs_out",
    "tests/training/test_together.py::test_one_process_killed_in_the_middle_of_saving",
    "tests/training/test_together.py::test_validation_of_the_same_model_is_identical",
    "tests/training/test_together.py::test_what_is_left_behind_is_rounded_in_shares_too",
    # studies, whose rows are programs of their own
    "tests/test_identity.py::test_a_finished_study_needs_its_data_no_more",
    "tests/test_identity.py::test_a_study_is_not_continued_with_other_text",
    "tests/test_study.py::test_a_finished_study_runs_nothing",
    "tests/test_study.py::test_a_stack_starts_from_the_shallow_model_twice",
    "tests/test_study.py::test_another_recipe_for_a_finished_row_is_refused",
    "tests/test_study.py::test_every_row_is_run_and_told",
    "tests/test_study.py::test_flops_are_spent_as_planned",
    "tests/test_study.py::test_rows_are_compared_with_the_reference_of_their_seed",
    "tests/test_study.py::test_two_starts_of_a_study_do_not_meet",
    "tests/test_study.py::test_what_needs_a_failed_row_is_not_run_and_the_rest_is",
    # whole programs, packages and pages
    "tests/docs/test_commands.py::test_a_page_can_be_followed",
    "tests/test_gpu_benchmark.py::test_it_measures_once_and_ends_with_a_table",
    "tests/test_gpu_benchmark.py::test_sigterm_keeps_what_there_is_and_prints_it",
    "tests/test_package.py::test_the_installed_package_works_from_anywhere",
    "tests/test_package.py::test_the_sdist_holds_what_is_needed_to_build_it_again",
    "tests/test_package.py::test_the_wheel_holds_the_package_and_its_data_and_nothing_else",
    "tests/test_quickstart.py::test_docstrings_are_several_megabytes_and_always_the_same",
    "tests/test_quickstart.py::test_the_users_own_text",
    "tests/test_results.py::test_tables_and_pictures_are_those_made_from_the_files",
    # fuzz
    "tests/models/test_damaged_checkpoints.py::test_any_configuration_gives_one_sentence_or_a_model",
    "tests/models/test_damaged_checkpoints.py::test_damaged_files_give_one_sentence_or_the_same_model",
    "tests/test_recipe_fuzz.py::test_any_damage_to_a_file_is_read_or_refused",
    "tests/test_recipe_fuzz.py::test_any_yaml_values_are_read_and_planned_or_refused",
    "tests/test_recipe_fuzz.py::test_every_odd_value_at_every_key",
    "tests/test_recipe_fuzz.py::test_what_is_valid_and_small_runs",
    # a search for layers and three trainings
    "tests/analysis/test_shape.py::test_from_the_command_line",
    # large matrices, an index of 14,000 tasks, compiled code, long runs
    "tests/analysis/test_rank.py::test_equals_a_float64_svd_where_subspaces_decide",
    "tests/analysis/test_rank.py::test_each_proof_decides_what_it_should",
    "tests/analysis/test_rank.py::test_lazy_heads_need_no_full_decomposition",
    "tests/analysis/test_rank.py::test_spectra_whose_energy_is_near_tau",
    "tests/data/test_order.py::test_interruptions_change_nothing",
    "tests/data/test_prepare.py::test_large_vocabularies_take_32_bits",
    "tests/evaluation/test_harness.py::test_a_llama_with_a_short_context_and_worked_examples",
    "tests/evaluation/test_harness.py::test_mmlu_is_the_same_from_the_hub_and_from_a_folder_with_all_its_subjects",
    "tests/evaluation/test_tasks.py::test_an_unknown_task_is_told_with_the_nearest_names",
    "tests/models/test_attention.py::test_layers_that_see_less_than_the_window_keep_their_mask",
    "tests/models/test_attention.py::test_transformers_own_way_has_a_mask_in_compiled_code",
    "tests/report/test_comparison.py::test_every_figure_names_every_run",
    "tests/test_bos.py::test_a_run_reads_it_everywhere",
    "tests/training/test_float8.py::test_a_run_in_float8_goes_on_exactly_where_it_was_stopped",
]
"""Files, or tests with all their cases."""

SAMPLED = {
    "tests/analysis/test_probe.py::test_the_matrices_are_those_of_eager_attention": 6,
    "tests/analysis/test_rank.py::test_equals_a_float64_svd_at_full_size": 10,
    "tests/analysis/test_shape.py::test_shapes_come_closest_below_the_target": 8,
    "tests/cli/test_checkpoints.py::test_a_checkpoint_that_cannot_be_read": 4,
    "tests/cli/test_checkpoints.py::test_every_verb_refuses_by_the_configuration": 4,
    "tests/cli/test_mistakes.py::test_one_sentence_and_nothing_left": 6,
    "tests/data/test_prepare.py::test_rows_without_text_are_counted_once_after_an_interruption": 3,
    "tests/evaluation/test_evaluate.py::test_other_settings_ask_again": 3,
    "tests/evaluation/test_harness.py::test_guessing_gives_chance": 3,
    "tests/evaluation/test_harness.py::test_what_is_written_is_what_the_harness_has_it_write": 2,
    "tests/evaluation/test_harness.py::test_a_context_that_is_read_once_changes_no_answer": 6,
    "tests/evaluation/test_harness.py::test_items_from_a_folder_are_asked_as_the_harness_asks_those_of_the_hub": 5,
    "tests/initialization/test_half_width.py::test_every_tensor_is_a_part_of_its_own": 4,
    "tests/initialization/test_half_width.py::test_saved_and_read_again_it_gives_the_same_logits": 4,
    "tests/initialization/test_half_width.py::test_the_heads_kept_attend_as_they_did": 4,
    "tests/initialization/test_half_width.py::test_the_mlp_kept_computes_what_it_did": 4,
    "tests/initialization/test_inherit.py::test_append_keeps_what_was_trained_and_adds_the_references_next_blocks": 4,
    "tests/initialization/test_inherit.py::test_everything_but_the_later_blocks_is_inherited": 4,
    "tests/initialization/test_inherit.py::test_hidden_state_after_the_cut_is_the_references": 8,
    "tests/initialization/test_inherit.py::test_per_layer_fields_are_cut": 4,
    "tests/initialization/test_inherit.py::test_saved_and_loaded_it_gives_the_same_logits": 4,
    "tests/initialization/test_inherit.py::test_tied_weights_stay_tied": 4,
    "tests/initialization/test_select.py::test_blocks_come_from_the_layers_named": 4,
    "tests/initialization/test_select.py::test_the_first_layers_are_what_inherit_takes": 4,
    "tests/initialization/test_width.py::test_any_entries_can_be_taken": 4,
    "tests/initialization/test_width.py::test_without_what_is_zero_the_logits_are_the_same": 4,
    "tests/models/test_attention.py::test_no_masks_are_made_where_all_layers_see_the_whole_window": 8,
    "tests/models/test_exactness.py::test_blocks_compute_at_new_places_what_they_did": 5,
    "tests/models/test_pretrained.py::test_the_language_model_of_a_multimodal_one_is_the_same_function": 3,
    "tests/models/test_pretrained.py::test_what_may_be_left_over": 4,
    "tests/models/test_sweep.py::test_a_type_is_cut_exactly_or_refused_in_a_sentence": 30,
    "tests/test_final_model.py::test_tokenizer_and_template_of_the_final_model": 3,
    "tests/test_identity.py::test_a_run_resumes_with_settings_that_do_not_decide_its_weights": 6,
    "tests/test_identity.py::test_killed_while_a_run_is_opened": 3,
    "tests/test_identity.py::test_tokens_of_another_tokenizer_are_refused": 3,
    "tests/test_paper_recipes.py::test_every_row_of_the_larger_ones": 2,
    "tests/test_paper_recipes.py::test_the_references": 4,
    "tests/test_recipe_fuzz.py::test_what_the_fuzz_starts_from_runs": 3,
    "tests/training/test_out_of_memory.py::test_fewer_windows_end_with_the_weights_of_a_run_that_had_them_from_the_start": 3,  # noqa: E501
    "tests/training/test_together.py::test_one_process_killed_in_the_middle_of_saving": 3,
}
"""Tests with many cases, of which `make test` runs every so-and-so-many-th."""
