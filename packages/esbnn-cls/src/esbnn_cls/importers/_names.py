"""Official state-dict names in ours: one table for all sources, since their authors share conventions.

A rule gives candidates; the one that exists in the target and fits its number of elements is taken. So the same table serves whole
networks, single blocks, single units and single layers.
"""

from __future__ import annotations

import re

_TENSOR = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_STATE = r"(weight|weights|bias|alpha|rotate|R1|R2|B)"

# pattern -> candidates; {n} are the pattern's groups. Inside a residual block, or at the top of a network.
_RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (rf"conv(\d)\.{_STATE}", ("unit{1}.conv.{2}", "conv{1}.{2}", "stem.conv.{2}")),
    (r"conv(\d)\.binary_a\.(alpha_a|beta_a)", ("unit{1}.conv.sign.{2}",)),
    (rf"bn1\.{_TENSOR}", ("unit1.norm.{1}", "norm1.{1}", "stem.norm.{1}", "norm.{1}")),
    (rf"bn2\.{_TENSOR}", ("unit2.norm.{1}", "norm2.{1}", "head_norm.{1}")),
    (rf"bn3\.{_TENSOR}", ("out_norm.{1}",)),
    (r"nonlinear1\.(weight|pos_scale|neg_scale)", ("unit1.act.{1}", "stem.act.{1}")),
    (r"nonlinear2\.(weight|pos_scale|neg_scale)", ("unit2.act.{1}",)),
    (
        rf"(?:shortcut|downsample)\.\d\.(?:{_TENSOR}|{_STATE})",
        tuple(f"{unit}shortcut.{part}.{{0}}" for unit in ("unit1.", "unit2.", "") for part in ("unit.conv", "conv", "unit.norm", "norm")),
    ),
    (rf"(?:linear|fc)\.{_TENSOR}", ("fc.{1}",)),
    # One unit: the blocks of one convolution (Bi-Real, ReActNet, ReCU's two-stage form) and single units.
    (rf"(?:conv|binary_conv)\.{_STATE}", ("conv.{1}", "{1}", "stem.conv.{1}")),
    (r"conv\.binary_conv\.weights?", ("conv.weight",)),
    (r"conv\.binary_a\.(alpha_a|beta_a)", ("conv.sign.{1}",)),
    (rf"bn\.{_TENSOR}", ("norm.{1}", "pre.{1}", "stem.norm.{1}")),
    (r"move0\.bias", ("conv.sign.bias", "bias")),
    (r"move1\.bias", ("act.shift_in", "shift_in")),
    (r"move2\.bias", ("act.shift_out", "shift_out")),
    (r"(?:nonlinear|prelu)\.(weight|pos_scale|neg_scale)", ("act.{1}", "{1}")),
    # One layer.
    (_STATE, ("{1}", "conv.{1}", "mul.{1}")),
    (r"(?:binary_a\.)?(alpha_a|beta_a)", ("sign.{1}", "{1}")),
    (r"activation_post_process\.alpha", ("alpha",)),
    (r"(beta|gamma|pos_scale|neg_scale|running_mean|running_var|num_batches_tracked)", ("mul.{1}", "{1}")),
)
_COMPILED = tuple((re.compile(pattern), candidates) for pattern, candidates in _RULES)

# Present in official files, without a place of their own here.
IGNORED: tuple[tuple[str, str], ...] = (
    (r"(.*\.)?(tau|percent|k|t|epoch)", "a schedule's value, here a function of training progress"),
    (r"bn3\..*", "declared by the official network, not used by it"),
    (r"layer3\.\d+\.bn2\..*", "declared by BinaryNet's last block, not used by it"),
    (r"nonlinear2\..*", "declared by the official network, not used by it"),
)


def candidates(key: str, one_convolution: bool) -> list[str]:
    """Our names that the official `key` may mean, best first.

    one_convolution: whether the source's blocks hold one convolution each; two of them are one of our residual blocks.
    """
    prefix = ""
    if match := re.fullmatch(r"layer(\d+)\.(\d+)\.(.*)", key):
        stage, block, key = int(match[1]) - 1, int(match[2]), match[3]
        prefix = f"stages.{stage}.{block // 2}.unit{block % 2 + 1}." if one_convolution else f"stages.{stage}.{block}."
    elif match := re.fullmatch(r"xnor\.(\d+)\.(.*)", key):
        if match[1] == "13":
            return [f"fc.{match[2]}"]
        prefix, key = f"layers.{match[1]}.", match[2]
    found: list[str] = []
    for pattern, templates in _COMPILED:
        if match := pattern.fullmatch(key):
            leaf = key.rsplit(".", 1)[-1]
            for template in templates:
                name = prefix + template.replace("{0}", leaf).replace("{1}", _group(match, 1)).replace("{2}", _group(match, 2))
                found.append(re.sub(r"\bweights$", "weight", name))
    return found


def _group(match: re.Match[str], n: int) -> str:
    return (match[n] or "") if n <= (match.re.groups or 0) else ""
