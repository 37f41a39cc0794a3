"""The committed weights of BMN-CSA find the segments of videos that they were not trained on."""

import numpy as np

from fovea.api.actions import ActionsOut
from fovea_recipes.detection.bmn.data import videos
from services.detection.models.bmn import BmnCsaActionDetector
from services.detection.segments.proposals import interval_iou
from services.detection.tests.test_action_route import npz
from tests.harness.models import answered, client_of


def test_segments_of_unseen_videos_are_found_with_their_class(tmp_path):
    held, hits, total = videos("test", 30), 0, 0
    with client_of(tmp_path, "detection", {"bmn-csa": BmnCsaActionDetector}) as client:
        answers = [
            answered(client.post("/v1/actions?duration=32", files={"features": npz(held, video)}), ActionsOut)
            for video in range(30)
        ]
    for video, answer in enumerate(answers):
        best = answer.proposals[:5]
        for (start, end), label in zip(held.segments[video] * 32, held.labels[video], strict=True):
            same = [p for p in best if p.class_id == label]
            iou = interval_iou(np.array([p.start for p in same]), np.array([p.end for p in same]), start, end)
            hits, total = hits + (iou.max(initial=0) >= 0.5), total + 1
    assert hits / total > 0.5
