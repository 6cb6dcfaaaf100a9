"""Watches a picture come into being: partial images over server-sent events, as OpenAI's client reads them.

    pip install openai
    python stream.py "a green tree in a meadow"
"""
import base64
import os
import sys

from openai import OpenAI


def main(prompt="a green tree in a meadow", stem="stream"):
    client = OpenAI(
        base_url=os.environ.get("EASEL_URL", "http://127.0.0.1:8080") + "/v1",
        api_key=os.environ.get("EASEL_KEY", "none"),
    )
    for event in client.images.generate(prompt=prompt, stream=True, partial_images=3, extra_body={"seed": 2}):
        if event.type == "image_generation.partial_image":
            file = f"{stem}-{event.partial_image_index}.png"
        else:
            file = f"{stem}.png"
        with open(file, "wb") as out:
            out.write(base64.b64decode(event.b64_json))
        print(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
