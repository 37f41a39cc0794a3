"""Fovea in one screen: a picture, a chat, a job. Start the product first: `make run`."""

import sys

import fovea

PICTURE = sys.argv[1] if len(sys.argv) > 1 else "services/medical_seg/models/frame.jpg"


def main() -> None:
    """Ask three services, the last one as a job."""
    with fovea.Client("http://127.0.0.1:8080") as client:
        for model in client.models():
            print(f"{model.id:32} {model.task}")

        answer = client.segment(PICTURE, include=["mask"])
        print(f"{answer.model}: {answer.area_percent:.1f} % of {PICTURE} is polyp")

        for piece in client.chat_stream("How many days has a week?", max_tokens=20, temperature=0):
            print(piece.text, end="", flush=True)
        print()

        job = client.jobs.submit("detect", {"model": "yolo9tr"}, pictures={"image": PICTURE})
        client.jobs.wait(job.id)
        found = client.jobs.result(job.id).json()
        print(f"job {job.id}: {len(found['detections'])} objects")


if __name__ == "__main__":
    main()
