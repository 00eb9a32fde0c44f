"""Answer over HTTP with a trained run: requests that arrive together are scored together.

    python serve.py runs/sentiment/tiny [--port 8000]
    curl localhost:8000/classify -d '{"text": "Alder raised its dividend again"}'

POST /classify (one text, or {"texts": [...]}), GET /healthz, GET /metrics. SIGTERM answers what was asked, then ends.
It knows no users: what is not this machine reaches it through a proxy of yours.
"""

import argparse
from pathlib import Path

import uvicorn
from fintune.calibration import check_threshold
from fintune.inference import Classifier
from fintune.service import create_app

from fintune.errors import run


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="folder of a run of train_sft.py or train_cls.py")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    abstain = parser.add_mutually_exclusive_group()
    abstain.add_argument("--abstain-below", type=float, default=0.0, help="confidence below which a text is abstained")
    abstain.add_argument("--target-accuracy", type=float, help="abstain so that validation rows reached this share")
    parser.add_argument("--max-waiting", type=int, default=4096, help="texts that may wait; beyond it, status 429")
    parser.add_argument("--max-body", type=int, default=2**20, help="bytes of a request; beyond it, status 413")
    parser.add_argument("--max-connections", type=int, default=512, help="beyond it, status 503")
    args = parser.parse_args(argv)

    least = check_threshold(args.abstain_below)
    classifier = Classifier.from_pretrained(args.run_dir)
    threshold = least if args.target_accuracy is None else classifier.threshold(args.target_accuracy)
    classifier(["warm up"])
    app = create_app(classifier, threshold, args.max_waiting, args.max_body)
    uvicorn.run(
        app, host=args.host, port=args.port, limit_concurrency=args.max_connections, access_log=False, ws="none"
    )


if __name__ == "__main__":
    run(main)
