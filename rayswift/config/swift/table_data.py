"""ms-swift's dataset and template flags."""

from rayswift.config.swift.rules import ByValue, NoEffect, Refused, Rule, To

_STREAMED = NoEffect("rows are always streamed through Ray Data; cluster.num_data_cpus says on how many CPUs")
_NEVER_GUESSED = NoEffect("a column is never guessed; data.columns maps names")
_TEMPLATE = NoEffect("the tokenizer's chat template renders everything; model.chat_template replaces it")
_PACKED = NoEffect("rows are never padded to each other: data.packing")

DATA: dict[str, Rule] = {
    "data_seed": NoEffect("train.seed orders the rows too"),
    "dataset_num_proc": _STREAMED,
    "packing_num_proc": _STREAMED,
    "load_from_cache_file": NoEffect(
        "rows are encoded as they stream, so there is no pass to cache; data.cache keeps encoded rows"
    ),
    "lazy_tokenize": _STREAMED,
    "streaming": _STREAMED,
    "shuffle_buffer_size": NoEffect("data.shuffle orders all rows, not a buffer"),
    "download_mode": NoEffect("the hub's own cache decides what is downloaded"),
    "dataset_shuffle": To("data.shuffle"),
    "train_dataloader_shuffle": NoEffect("data.shuffle is the one order of the rows"),
    "val_dataset_shuffle": NoEffect("evaluation does not depend on the order"),
    "strict": ByValue(
        {"true": To("data.max_bad_fraction", {"true": "0"})},
        NoEffect("bad rows are quarantined and counted; data.max_bad_fraction stops the run"),
    ),
    "remove_unused_columns": NoEffect("the columns a task needs are taken, under the names of data.columns"),
    "disable_auto_column_mapping": _NEVER_GUESSED,
    "custom_dataset_info": Refused("name the files or hub ids themselves in data.dataset, and map data.columns"),
    "packing_strategy": ByValue(
        {"binpack": NoEffect("packing is best-fit decreasing")}, Refused("packing is best-fit decreasing")
    ),
    "padding_free": _PACKED,
    "padding_side": _PACKED,
    "group_by_length": _PACKED,
    "truncation_strategy": To("data.truncation", {"delete": "drop"}),
    # templates
    "template": _TEMPLATE,
    "template_type": _TEMPLATE,
    "template_backend": _TEMPLATE,
    "agent_template": NoEffect("the tokenizer's chat template renders tools and tool calls"),
    "add_non_thinking_prefix": _TEMPLATE,
    "preserve_thinking": NoEffect("the tokenizer's chat template decides which thinking stays in the history"),
    "response_prefix": NoEffect("the tokenizer's chat template opens the answer"),
    "is_binary_loss_scale": NoEffect("weights of 0 and 1 need no tensor of their own"),
    "disable_ignore_empty_think": ByValue(
        {"false": To("data.ignore_empty_think", {"false": "true"})},
        NoEffect("an empty block of thoughts is trained unless data.ignore_empty_think leaves it out"),
    ),
}
