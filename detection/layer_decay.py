"""Layer-wise learning rates: the earlier a layer of the backbone, the smaller its rate."""

import re

_PART = re.compile(
    r"(?P<stem>\bstem\b|\bpos_embed\b|\bpatch_embed\b)|\b(?:res|layer)(?P<stage>\d)\b"
    r"|\bblocks\.(?P<block>\d+)\b|(?P<conv>\bbody\.(?:conv1|bn1)\b)"
)
_BACKBONE = re.compile(r"backbone\.(?!simfp|fpn)|roi_heads\.(?:res5|box_head\.layer4)\b")


def learning_rate_factor(name: str, decay: float, blocks: int | None = None) -> float:
    """What the base learning rate of a parameter is multiplied by.

    The heads have factor 1; the last layer of the backbone `decay`, the one before `decay ** 2`,
    and so on to the stem or the embeddings. Layers are the four stages of a ResNet or the blocks
    of a transformer (Bao et al., BEiT, 2022; Li et al., ViTDet, 2022, appendix).

    Args:
        name: of the parameter, in either trainer's detector.
        decay: SOLVER.LAYER_DECAY, in (0, 1].
        blocks: of the transformer; None for a ResNet.

    Examples:
        >>> learning_rate_factor("backbone.bottom_up.res5.0.conv1.weight", 0.5)
        0.5
        >>> learning_rate_factor("backbone.body.conv1.weight", 0.5)
        0.03125
        >>> learning_rate_factor("backbone.net.blocks.11.attn.qkv.weight", 0.5, blocks=12)
        0.5
        >>> learning_rate_factor("roi_heads.box_predictor.cls_score.weight", 0.5)
        1.0
    """
    match = _PART.search(name) if _BACKBONE.match(name) else None
    if match is None:
        return 1.0
    layers = 4 if blocks is None else blocks
    if match["stage"]:
        number = int(match["stage"]) - ("res" in match[0])
    elif match["block"]:
        number = int(match["block"]) + 1
    else:
        number = 0
    return float(decay ** (layers + 1 - number))
