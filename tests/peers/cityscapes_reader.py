"""CityscapesScripts reads a submission and scores it. Run by the Python that has cityscapesscripts.

usage: cityscapes_reader.py TASK.json
The task: `submission` (a zip), `truth` (label files, *_gtFine_labelIds.png with *_gtFine_instanceIds.png beside them),
`output` (a folder, where `result.json` is left: `scores`, what its evaluation returns, and `labels`, its table of ids,
train ids and colours).
"""

import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np

if not hasattr(np, "in1d"):  # cityscapesscripts 2.3.0 calls it, numpy 2.4 took it away
    np.in1d = np.isin


def main(task: dict[str, object]) -> None:
    """Unpack, let it find the prediction of each label file, let it evaluate them."""
    output = Path(str(task["output"]))
    with zipfile.ZipFile(str(task["submission"])) as archive:
        archive.extractall(output / "unpacked")
    os.environ["CITYSCAPES_RESULTS"] = str(output / "unpacked")
    os.environ["CITYSCAPES_EXPORT_DIR"] = str(output)
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as evaluation
    from cityscapesscripts.helpers.labels import labels

    truth = task["truth"]
    predictions = [evaluation.getPrediction(evaluation.args, path) for path in truth]
    evaluation.args.quiet = True
    scores = evaluation.evaluateImgLists(predictions, truth, evaluation.args)
    table = [[label.id, label.trainId, label.color] for label in labels]
    (output / "result.json").write_text(json.dumps({"scores": scores, "labels": table}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
