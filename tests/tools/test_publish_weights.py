"""Records of published weights."""

import json

from tools import publish_weights


def test_a_published_record_lists_its_trainings_in_their_order(tmp_path):
    record = tmp_path / "general.json"
    record.write_text(json.dumps({"earlier_trainings": ["first", "second"], "training": "third"}))
    assert publish_weights.earlier_trainings(record) == ["first", "second", "third"]
