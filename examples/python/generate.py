"""Draws a picture with the official OpenAI client, pointed at easel instead of at the vendor.

    pip install openai
    python generate.py "a red circle on a blue background" circle.png

EASEL_URL names the server (http://127.0.0.1:8080), EASEL_KEY its key where it asks for one.
"""
import base64
import os
import sys

from openai import OpenAI


def main(prompt="a red circle on a blue background", file="easel.png"):
    client = OpenAI(
        base_url=os.environ.get("EASEL_URL", "http://127.0.0.1:8080") + "/v1",
        api_key=os.environ.get("EASEL_KEY", "none"),
    )
    # Fields that OpenAI does not have go into extra_body.
    reply = client.images.generate(prompt=prompt, response_format="b64_json", extra_body={"seed": 1, "steps": 20})
    with open(file, "wb") as out:
        out.write(base64.b64decode(reply.data[0].b64_json))
    print(f"{file}: {reply.size}, seed {reply.data[0].seed}")


if __name__ == "__main__":
    main(*sys.argv[1:])
