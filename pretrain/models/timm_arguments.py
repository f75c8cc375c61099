"""Which arguments of a timm model a recipe or a checkpoint's description may give, by type and range.

A description may be a stranger's. Its arguments are therefore numbers, switches and names of layers; all
others are refused, above all those by which timm would open a file or an address, or build something that is
no encoder. The ranges are wide: they refuse what no network has, such as a million blocks, before time and
memory are spent on it.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from isotorus.errors import UserError
from isotorus.nearest_name import nearest

READS_ELSEWHERE = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
"""Arguments by which `timm.create_model` would open a file or an address with weights."""
LONGEST_NAME = 100
"""Characters of a model's name."""
_MODEL = re.compile(r"\w[\w.-]*", re.ASCII)
_WORD = re.compile(r"[\w./+-]{0,40}", re.ASCII)
_MOST_VALUES = 64
"""Entries of a list, such as the depths of a network's stages."""


def _is_whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, int) and not isinstance(x, bool) and least <= x <= most


def _is_number(least: float, most: float) -> Callable[[Any], bool]:
    return lambda x: (
        isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) and least <= x <= most
    )


# What a value must be, in words and as a test, and the arguments that take it, alone or in a list.
_KINDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "whole numbers from 0 to 1000",
        _is_whole(0, 1000),
        "block_config cls_attn_layers d2_scales depth depth_list depth_token_only depths downsample_ratio "
        "expand_groups extra_norm_period focal_levels focal_windows global_att_blocks global_attn_indexes "
        "global_block_counts inc_sec k_sec layers levels local_up_to_layer num_blocks num_blocks_list "
        "num_levels num_reg_tokens num_rnn_layers num_vit parallel_depth pooling_scale q_pool reg_tokens "
        "serial_depths stages transformer_depths",
    ),
    (
        "whole numbers from 1 to 65536",
        _is_whole(1, 2**16),
        "attn_mlp_ratio attn_pool_num_heads base_dim base_dims base_width bn_size block_reduce_first "
        "cardinality ch_div channel_multiplier channels dim dims embed_dim embed_dims feature_dim ffn_ratio "
        "final_chs growth_rate growth_rates group groups head_dim head_widths heads hidden_size "
        "hidden_sizes inner_dim in_chans init_channels initial_chs inplanes intermediate_size k_r key_dim "
        "n_div neck_chans num_features num_heads num_heads_inner num_heads_outer num_init_features "
        "num_kv_heads partial_dim qk_dim rel_pos_dim state_dim stem_chs stem_hidden_dim stem_size stem_width "
        "width_list widths winding_classes",
    ),
    (
        "whole numbers from 0 to 100000",
        _is_whole(0, 10**5),
        "attn_groups attn_head_dim_reduction head_hidden_size num_classes swiglu_align_to",
    ),
    (
        "whole numbers of pixels or patches, from 1 to 16384",
        _is_whole(1, 2**14),
        "crpe_window down_kernel_size down_patch_size down_stride downsample_kernel_size first_stride "
        "global_pos_size img_size kernel_size kernel_sizes kernels local_conv_size mask_unit_size merge_size "
        "msfa_output_resolution output_stride patch_kernel patch_size patch_sizes patch_stride pool_size "
        "pooling_kernel_size pos_embed_grid_size position_embedding_size q_stride ref_feat_shape "
        "repmixer_kernel_size sr_ratios stem_kernel_size stem_stride stride strides window_ratio window_size "
        "window_sizes window_spec wss",
    ),
    (
        "whole numbers of pixels, from 0 to 16384",
        _is_whole(0, 2**14),
        "down_pad downsample_padding patch_padding pretrained_window_sizes",
    ),
    (
        "numbers from 0 to 1",
        _is_number(0, 1),
        "attn_drop_rate drop drop_block_rate drop_path_rate drop_rate dropout mix_block_ratio norm_eps "
        "patch_drop_rate pos_drop_rate proj_drop_rate transition_compression_ratio",
    ),
    (
        "numbers from 0 to 1000",
        _is_number(0, 1000),
        "attn_pool_mlp_ratio attn_ratio bottle_ratio bottleneck_width_ratio cls_ratio conv_ratio "
        "deepen_factor depth_mult dim_mul downsample_expand_ratios expand_ratio expansion_ratio head_mul "
        "img_scale mbconv_expand_ratio mlp_ratio mlp_ratio_token_only mlp_ratios scale se_ratio ssd_expand "
        "stem_expand_ratio widen_factor width width_factor width_mult",
    ),
    (
        "numbers from -1000000 to 1000000",
        _is_number(-1e6, 1e6),
        "eta head_init_scale init_values layer_scale layer_scale_init_value layer_scale_init_values "
        "layerscale_value locality_strength ls_init_value res_scale_init_values rope_grid_offset "
        "rope_jitter_coords rope_rescale_coords rope_shift_coords rope_temperature rope_theta",
    ),
    (
        "true or false",
        lambda x: isinstance(x, bool),
        "aa_stem_only abs_win_pos_embed always_partition attn attn_mlp attn_only_layer_scale avg_down b "
        "basic bias bidirectional channel_attention channel_attn_v2 channel_embedding class_token conv_bias "
        "conv_init conv_mlp "
        "cpe_act crop_scale distillation distilled downsample_block downsamples dynamic_img_pad "
        "dynamic_img_size extra_norm_stage fc_norm ffn final_norm fix_init fix_stem fused_conv "
        "fused_downsample head_bias head_norm head_norm_first input_3x3 is_downsample_block legacy linear "
        "lkc_use_act mask_unit_attn mlp_bias multi_conv nlhb no_embed_class normalize_modulator "
        "outlook_attention patch_norm pool_include_prefix pre_norm preact proj_bias qk_norm qkv_bias "
        "qkv_fused reparam replace_stem_pool rope_rotate_half scale_attn_inner scale_attn_norm scale_mlp "
        "scale_mlp_norm se_downsamples se_from_exp sep_pos_embed sequential_attn shared_rel_pos "
        "shortcut_root small small_kernels standardize stem_bias stem_mid_norm stem_norm "
        "stem_use_scale_branch strict_img_size swiglu_mlp tokens_norm transformer_drop_path use_abs_pos "
        "use_abs_pos_emb use_conv use_expand_proj use_fc_norm use_grn use_lab use_layer_scale use_mlp_head "
        "use_msfa use_overlap_down use_pos_emb use_pos_embed use_post_norm use_post_norm_in_modulation "
        "use_post_transformer_norm use_pre_transformer_norm use_rel_pos use_rel_pos_bias use_rope "
        "use_rot_pos_emb use_shared_rel_pos_bias v2 vit_stem zero_init_last",
    ),
    (
        "names of one word",
        lambda x: isinstance(x, str) and bool(_WORD.fullmatch(x)),
        "aa_layer act_layer attn_act_layer attn_layer attn_stage attn_type attn_types attn_upsample "
        "block_type down_op downsample dw_act_layer embed_norm_layer encoder_pool fc_act_layer global_pool "
        "feature_set "
        "head_fn local_mbconv_norm mlp_layer norm_layer norm_layer_cl norm_layers pad_type pconv_fw_type "
        "pool_type pos_embed post_layers rel_pos_type rope_grid_indexing rope_type se_layer spatial_conv "
        "stem_type token_mixers types union version weight_init",
    ),
)
ALLOWED = {name: (words, fits) for words, fits, names in _KINDS for name in names.split()}
"""For each argument what its values must be, in words and as a test."""


def check_arguments(kwargs: dict[str, Any]) -> None:
    """Raise UserError, in one line, unless the arguments of a model describe its architecture alone."""
    for key, value in kwargs.items():
        if key in READS_ELSEWHERE:
            # Some descriptions of ours and of others say explicitly that nothing is read.
            if value:
                raise UserError(
                    f"encoder.kwargs.{key} would make timm read weights from elsewhere; leave it out, and to "
                    "start from weights set encoder.weights to a .safetensors file or a folder"
                )
            continue
        if key not in ALLOWED:
            near = nearest(str(key)[:LONGEST_NAME], ALLOWED)
            hint = f"; did you mean {near}?" if near else ""
            raise UserError(
                f"encoder.kwargs.{str(key)[:LONGEST_NAME]} is not among the arguments that an architecture "
                f"may have{hint}; change encoder.kwargs"
            )
        words, fits = ALLOWED[key]
        if not _all_fit(value, fits):
            raise UserError(
                f"encoder.kwargs.{key}={str(value)[:80]}: expected {words}, alone or in a list; change "
                "encoder.kwargs"
            )


def check_name(name: str) -> None:
    """Raise UserError for a name that is no plain word: a path, or a place such as hf-hub: or local-dir:."""
    if len(name) > LONGEST_NAME or not _MODEL.fullmatch(name):
        raise UserError(
            f"encoder.name {name[:LONGEST_NAME]!r} is not the name of a timm model, which has letters, "
            "digits, _, - and . alone; see timm.list_models(), and for weights encoder.weights"
        )


def _all_fit(value: Any, fits: Callable[[Any], bool]) -> bool:
    """Say whether a value, or each entry of a list of values, is absent or fits."""
    values = value if isinstance(value, list | tuple) else [value]
    return len(values) <= _MOST_VALUES and all(x is None or fits(x) for x in values)
