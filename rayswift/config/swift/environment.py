"""Environment variables of `swift`; they are used only in commands with ms-swift's flags."""

from collections.abc import Mapping

from rayswift.config.swift.rules import Flag, Translation

_WORKERS = "NPROC_PER_NODE"
# Variable -> task and field.
_FIELDS = {
    "INFONCE_TEMPERATURE": ("embedding", "train.infonce_temperature"),
    "GENERATIVE_RERANKER_POSITIVE_TOKEN": ("generative_reranker", "train.positive_token"),
    "GENERATIVE_RERANKER_NEGATIVE_TOKEN": ("generative_reranker", "train.negative_token"),
}
# Variables without a field here.
_WITHOUT_FIELD = {
    "INFONCE_USE_BATCH": ("embedding", "the texts of a batch are always each other's negatives"),
    "INFONCE_HARD_NEGATIVES": ("embedding", "every negative that a row names is used"),
    "INFONCE_MASK_FAKE_NEGATIVE": ("embedding", "no negative is left out for being like the query"),
    "INFONCE_FAKE_NEG_MARGIN": ("embedding", "no negative is left out for being like the query"),
    "INFONCE_INCLUDE_QQ": ("embedding", "queries are compared with documents only"),
    "INFONCE_INCLUDE_DD": ("embedding", "queries are compared with documents only"),
    "LISTWISE_RERANKER_TEMPERATURE": ("reranker", "scores enter the listwise loss as they are"),
    "LISTWISE_RERANKER_MIN_GROUP_SIZE": ("reranker", "every group that has a right and a wrong document is trained"),
}


def read(environ: Mapping[str, str], task: str, given: set[str], result: Translation) -> list[Flag]:
    """The variables as our flags, except for the fields in `given`; notes and problems go to `result`."""
    flags = _workers(environ, given, result)
    for name, (of, path) in _FIELDS.items():
        if name in environ and task == of and path not in given:
            flags.append((path, [environ[name]]))
            result.renamed.append(f"{name}={environ[name]} -> {path} {environ[name]}")
    for name, (of, why) in _WITHOUT_FIELD.items():
        if name in environ and task.endswith(of):
            result.notes.append(f"{name}={environ[name]} has no effect: {why}")
    return flags


def _workers(environ: Mapping[str, str], given: set[str], result: Translation) -> list[Flag]:
    nodes, each = environ.get("NNODES") or "1", environ.get(_WORKERS)
    if environ.get("NODE_RANK", "0").isdigit() and int(environ.get("NODE_RANK", "0")) > 0:
        result.problems_of_a_start.append(
            f"NODE_RANK={environ['NODE_RANK']} is refused: a run is started once, where NODE_RANK is 0; this machine "
            "joins its Ray cluster (`ray start --address=HEAD:6379`) and takes part from then on"
        )
    if "cluster.num_workers" in given or (each is None and nodes == "1"):
        return []
    words = f"NNODES={nodes} {_WORKERS}={each}" if nodes != "1" else f"{_WORKERS}={each}"
    if each is None or not (each.isdigit() and nodes.isdigit()) or not int(each) * int(nodes):
        result.notes.append(f"{words} gives no number of workers; set cluster.num_workers")
        return []
    number = str(int(each) * int(nodes))
    result.renamed.append(f"{words} -> cluster.num_workers {number}")
    return [("cluster.num_workers", [number])]
