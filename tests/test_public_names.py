"""Functions of the papers' systems that programs of others import: each is where it is promised, used here or not."""

import importlib

import pytest

PUBLIC = {
    "fovea_actions.segments.proposals": "sampling_mask boundary_labels soft_nms",
    "fovea_circuits.comparison": "overlap",
    "fovea_circuits.experiments.indicators": "indicators",
    "fovea_circuits.patching": "logit_difference path_patch activation_patch ablate direct_logit_attribution",
    "fovea_evaluation.metrics.rankings": "evaluate system_scores tau_ap compare",
    "fovea_lab.ruler": "generate render score string_match_all string_match_part bootstrap paired resolve fit place",
    "fovea_memory.mixers.deconstructed.mixers": "mix attention_map Recurrence layout cache_bytes",
    "fovea_memory.mixers.landmark.attention": "landmark_softmax citations",
    "fovea_memory.mixers.routing.attention": "route RoutingState update_centroids",
    "fovea_memory.mixers.titans.state": "pack_state unpack_state StateError",
    "fovea_planning.gaze.metrics": "sequence_score behaviour multimatch",
    "fovea_planning.models.pointer_net": "PointerNet",
    "fovea_planning.solvers": "plan plans InvalidPoints",
    "fovea_recipes.detection.losses": "dual_detection_loss detection_loss",
    "fovea_recipes.detection.metrics.boxes": "box_average_precision",
    "fovea_recipes.detection.metrics.temporal": "temporal_average_precision",
    "fovea_recipes.interpretability.experiments.influence": "Document Influence token_loss influence select",
    "fovea_recipes.interpretability.pruning": "sparsity_of sparsity_by_layer verify_nm",
    "fovea_recipes.medical_seg.losses": "structure_loss",
    "fovea_recipes.medical_seg.metrics": "segmentation_scores",
    "fovea_recipes.vision_restoration.losses": "pixel_loss perceptual_loss adversarial_losses",
    "services.detection.boxes": "decode nms letterbox unletterbox complete_iou",
    "services.detection.layers.edge": "EdgeModule EdgeFusion SpaceToDepthConv",
    "services.detection.layers.omni": "OmniKernel CSPOmniKernel FrequencyGate",
    "services.interpretability.attention.head_scores": "head_patterns top_heads",
    "services.interpretability.attention.retrieval_score": "retrieval_score rouge1_recall aggregate",
    "services.interpretability.experiments.attention_sinks": "column_mass sinks",
    "services.llm_longctx.engine": "Engine Request",
    "services.llm_longctx.kernels": "block_sparse_prefill decode backends BlockCsr",
    "services.llm_longctx.methods": "method",
    "services.llm_longctx.methods.dhsa": "mass_ratios select_boundaries",
    "services.relevance_judge.metrics.agreement": "cohen_kappa krippendorff_alpha confusion agree",
    "services.relevance_judge.metrics.calibration": "fit Calibration",
    "services.relevance_judge.metrics.ensembles": "majority average median",
    "services.relevance_judge.metrics.pair_order": "kendall_tau_b spearman_rho",
    "services.relevance_judge.parsing.grades": "parse",
    "services.relevance_judge.parsing.trec": "read_qrels read_runs",
    "services.vision_restoration.metrics": "psnr ssim",
    "shared.lm.niah_prompts": "needle_span",
    "shared.lm.taps": "trace Replace Scale Uniform Attend",
    "shared.registry": "network",
    "shared.sparsity": "SparsityClaim lint",
    "shared.vision.tiling": "tiled",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_where_others_import_them(module):
    found = importlib.import_module(module)
    assert [name for name in PUBLIC[module].split() if not hasattr(found, name)] == []
