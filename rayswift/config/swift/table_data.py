"""ms-swift's dataset and template flags."""

from rayswift.config.swift.rules import ByValue, NoEffect, Refused, Rule, To, for_all

DATA: dict[str, Rule] = {
    "dataset_shuffle": To("data.shuffle"),
    "truncation_strategy": To("data.truncation", {"delete": "drop"}),
    "custom_dataset_info": Refused("name the files or hub ids themselves in data.dataset, and map data.columns"),
    "strict": ByValue(
        {"true": To("data.max_bad_fraction", {"true": "0"})},
        NoEffect("bad rows are quarantined and counted; data.max_bad_fraction stops the run"),
    ),
    "packing_strategy": ByValue(
        {"binpack": NoEffect("packing is best-fit decreasing")}, Refused("packing is best-fit decreasing")
    ),
    "disable_ignore_empty_think": ByValue(
        {"false": To("data.ignore_empty_think", {"false": "true"})},
        NoEffect("an empty block of thoughts is trained unless data.ignore_empty_think leaves it out"),
    ),
    "data_seed": NoEffect("train.seed orders the rows too"),
    "load_from_cache_file": NoEffect(
        "rows are encoded as they stream, so there is no pass to cache; data.cache keeps encoded rows"
    ),
    "shuffle_buffer_size": NoEffect("data.shuffle orders all rows, not a buffer"),
    "download_mode": NoEffect("the hub's own cache decides what is downloaded"),
    "train_dataloader_shuffle": NoEffect("data.shuffle is the one order of the rows"),
    "val_dataset_shuffle": NoEffect("evaluation does not depend on the order"),
    "remove_unused_columns": NoEffect("the columns a task needs are taken, under the names of data.columns"),
    "disable_auto_column_mapping": NoEffect("a column is never guessed; data.columns maps names"),
    "agent_template": NoEffect("the tokenizer's chat template renders tools and tool calls"),
    "preserve_thinking": NoEffect("the tokenizer's chat template decides which thinking stays in the history"),
    "response_prefix": NoEffect("the tokenizer's chat template opens the answer"),
    "is_binary_loss_scale": NoEffect("weights of 0 and 1 need no tensor of their own"),
    **for_all(
        "dataset_num_proc packing_num_proc lazy_tokenize streaming",
        NoEffect("rows are always streamed through Ray Data; cluster.num_data_cpus sets the number of CPUs"),
    ),
    **for_all(
        "padding_free padding_side group_by_length", NoEffect("rows are never padded to each other: data.packing")
    ),
    **for_all(
        "template template_type template_backend add_non_thinking_prefix",
        NoEffect("the tokenizer's chat template renders everything; model.chat_template replaces it"),
    ),
}
