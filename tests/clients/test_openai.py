"""The official OpenAI client for Python against a running server (EASEL_URL)."""
import base64
import io
import os
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from PIL import Image

URL = os.environ["EASEL_URL"]
EXAMPLES = Path(__file__).parents[2] / "examples" / "python"
FEW = {"steps": 4}


@pytest.fixture
def client():
    return openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)


def decode(text):
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


def centre_and_corner(image):
    image = image.convert("RGB")
    width, height = image.size
    return image.getpixel((width // 2, height // 2)), image.getpixel((width // 16, height // 16))


def test_a_red_circle_on_blue_is_red_in_the_middle_and_blue_in_the_corner(client):
    reply = client.images.generate(
        prompt="a red circle on a blue background", response_format="b64_json", extra_body={"seed": 1}
    )
    (red, blue) = centre_and_corner(decode(reply.data[0].b64_json))
    assert red[0] > 150 and red[0] > red[2] + 80, red
    assert blue[2] > 110 and blue[2] > blue[0] + 60, blue


def test_the_url_opens_without_a_key_and_holds_the_same_bytes(client):
    by_url = client.images.generate(prompt="a yellow star at night", extra_body={"seed": 7, **FEW})
    inline = client.images.generate(
        prompt="a yellow star at night", response_format="b64_json", extra_body={"seed": 7, **FEW}
    )
    assert by_url.data[0].b64_json is None
    with urllib.request.urlopen(by_url.data[0].url) as reply:
        assert reply.headers["content-type"] == "image/png"
        assert reply.read() == base64.b64decode(inline.data[0].b64_json)


def test_n_pictures_are_those_of_the_following_seeds(client):
    three = client.images.generate(
        prompt="a green tree", n=3, response_format="b64_json", extra_body={"seed": 20, **FEW}
    )
    assert [d.seed for d in three.data] == [20, 21, 22]
    alone = client.images.generate(prompt="a green tree", response_format="b64_json", extra_body={"seed": 22, **FEW})
    assert alone.data[0].b64_json == three.data[2].b64_json


@pytest.mark.parametrize("size", ["256x256", "1024x1024", "1792x1024", "128x128", "auto"])
def test_fixed_sizes_are_delivered_as_asked(client, size):
    reply = client.images.generate(
        model="dall-e-3", prompt="a blue fish", size=size, response_format="b64_json", extra_body={"seed": 3, **FEW}
    )
    image = decode(reply.data[0].b64_json)
    assert f"{image.width}x{image.height}" == (reply.size if size == "auto" else size)


@pytest.mark.parametrize("kind, magic", [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8"), ("webp", b"RIFF")])
def test_formats_and_the_shape_that_gpt_image_clients_read(client, kind, magic):
    reply = client.images.generate(model="gpt-image-1", prompt="a cat", output_format=kind, extra_body=FEW)
    assert base64.b64decode(reply.data[0].b64_json).startswith(magic)
    assert reply.output_format == kind
    usage = reply.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


@pytest.mark.parametrize("partial", [0, 1, 3])
def test_a_stream_brings_partial_pictures_and_the_same_final_one(client, partial):
    body = {"seed": 5, "steps": 8}
    events = list(
        client.images.generate(prompt="a house in the snow", stream=True, partial_images=partial, extra_body=body)
    )
    partials = [e for e in events if e.type == "image_generation.partial_image"]
    done = [e for e in events if e.type == "image_generation.completed"]
    assert len(done) == 1 and events[-1] is done[0]
    assert [e.partial_image_index for e in partials] == list(range(partial))
    for event in partials:
        decode(event.b64_json)
    plain = client.images.generate(prompt="a house in the snow", response_format="b64_json", extra_body=body)
    assert done[0].b64_json == plain.data[0].b64_json


@pytest.mark.parametrize(
    "arguments, param",
    [
        ({"n": 0}, "n"),
        ({"n": 99}, "n"),
        ({"size": "10000000x8"}, "size"),
        ({"size": "large"}, "size"),
        ({"output_format": "gif"}, "output_format"),
        ({"prompt": ""}, "prompt"),
        ({"background": "transparent"}, "background"),
        ({"extra_body": {"steps": 0}}, "steps"),
        ({"extra_body": {"steps": "many"}}, "steps"),
        ({"extra_body": {"sampler": "best"}}, "sampler"),
        ({"extra_body": {"sampler": "ddim", "schedule": "karras"}}, "schedule"),
        ({"extra_body": {"sampler": "euler", "eta": 0.5}}, "eta"),
        ({"extra_body": {"sampler": "euler", "sigmas": [1, 2, 0]}}, "sigmas"),
        ({"extra_body": {"loras": [{"name": "x"}]}}, "loras"),
        ({"extra_body": {"webhook_url": "http://127.0.0.1/"}}, "webhook_url"),
    ],
)
def test_a_bad_value_is_a_400_that_names_the_field(client, arguments, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**{"prompt": "a cat", **arguments})
    assert caught.value.param == param
    assert caught.value.request_id


def test_the_samplers_options_change_the_picture(client):
    def one(**options):
        body = {"seed": 9, "steps": 6, **options}
        reply = client.images.generate(prompt="a fish", response_format="b64_json", extra_body=body)
        # The pixels alone: the file also tells the options that it was made with.
        return decode(reply.data[0].b64_json).tobytes()

    plain = one()
    others = [one(noise="torch_cuda"), one(eta=0.8), one(guidance_rescale=0.7), one(sampler="heun"), one(clip_skip=1)]
    assert len({plain, *others}) == 6
    assert one(noise="torch_cpu", eta=0) == plain


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def circle():
    """A picture of the model's own, in its native size."""
    client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
    reply = client.images.generate(
        prompt="a red circle on a blue background", response_format="b64_json", extra_body={"seed": 1}
    )
    return decode(reply.data[0].b64_json).convert("RGB")


def difference(a, b):
    """The mean difference of two pictures' values."""
    a, b = a.convert("RGB").tobytes(), b.convert("RGB").tobytes()
    assert len(a) == len(b)
    return sum(abs(x - y) for x, y in zip(a, b)) / len(a)


def test_an_edit_is_nearer_to_its_picture_the_lower_its_strength(client, circle):
    def edit(strength):
        reply = client.images.edit(
            image=png(circle), prompt="a green tree", response_format="b64_json",
            extra_body={"seed": 4, "steps": 10, "strength": strength},
        )
        return decode(reply.data[0].b64_json)

    pictures = [edit(strength) for strength in (0.1, 0.5, 1.0)]
    assert all(picture.size == circle.size for picture in pictures)
    distances = [difference(circle, picture) for picture in pictures]
    assert distances == sorted(distances) and distances[0] < 15, distances


def test_an_edit_without_a_size_has_its_pictures_size(client, circle):
    wide = circle.resize((circle.width * 2, circle.height + 7))
    reply = client.images.edit(
        image=("wide.webp", webp(wide), "image/webp"), prompt="a red circle", response_format="b64_json",
        extra_body=FEW,
    )
    image = decode(reply.data[0].b64_json)
    assert image.size == wide.size and reply.size == f"{wide.width}x{wide.height}"


def webp(image):
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True)
    return file.getvalue()


def test_a_mask_keeps_what_is_opaque_to_the_bit(client, circle):
    mask = Image.new("RGBA", circle.size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, circle.width // 2, circle.height))
    reply = client.images.edit(
        image=[png(circle)], mask=png(mask), prompt="a yellow star at night", response_format="b64_json", n=2,
        extra_body={"seed": 6, "steps": 10},
    )
    for data in reply.data:
        made = decode(data.b64_json).convert("RGB")
        box = (circle.width // 2, 0, circle.width, circle.height)
        assert made.crop(box).tobytes() == circle.crop(box).tobytes()
        other = (0, 0, circle.width // 2, circle.height)
        assert difference(made.crop(other), circle.crop(other)) > 5


def test_an_edit_streams(client, circle):
    events = list(
        client.images.edit(
            image=png(circle), prompt="a red heart", stream=True, partial_images=2, extra_body={"seed": 5, "steps": 8}
        )
    )
    types = [event.type for event in events]
    assert types[-1] == "image_edit.completed" and set(types[:-1]) == {"image_edit.partial_image"}
    for event in events:
        decode(event.b64_json)


def test_variations_are_of_the_picture(client, circle):
    reply = client.images.create_variation(
        image=io.BytesIO(png(circle)), n=2, response_format="b64_json", extra_body={"seed": 2, "strength": 0.3}
    )
    first, second = (decode(data.b64_json) for data in reply.data)
    assert first.tobytes() != second.tobytes()
    assert max(difference(circle, first), difference(circle, second)) < 40


@pytest.mark.parametrize(
    "image, arguments, param, code",
    [
        (b"hello", {}, "image", "invalid_image"),
        (b"GIF89a\x01\x00\x01\x00\x00\x00\x00", {}, "image", "invalid_image"),
        (None, {"mask": b"hello"}, "mask", "invalid_image"),
        (None, {"mask": png(Image.new("RGBA", (8, 8)))}, "mask", "invalid_value"),
        (None, {"size": "big"}, "size", "invalid_value"),
        (None, {"n": 99}, "n", "invalid_value"),
        (None, {"prompt": ""}, "prompt", "invalid_value"),
        (None, {"extra_body": {"strength": 2}}, "strength", "invalid_value"),
    ],
)
def test_a_bad_edit_is_a_400_that_names_the_field(client, circle, image, arguments, param, code):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(**{"image": image or png(circle), "prompt": "a cat", **arguments})
    assert (caught.value.param, caught.value.code) == (param, code)


def test_a_result_is_the_next_requests_picture(client):
    first = client.images.generate(prompt="a blue fish", extra_body={"seed": 3, **FEW})
    again = client.images.generate(
        prompt="a blue fish", response_format="b64_json",
        extra_body={"seed": 3, "image": first.data[0].url, "strength": 0.2, "steps": 10},
    )
    with urllib.request.urlopen(first.data[0].url) as reply:
        before = Image.open(io.BytesIO(reply.read()))
        assert difference(before, decode(again.data[0].b64_json)) < 30


def test_nothing_is_fetched_from_inside(client):
    for address in ("http://127.0.0.1:1/a.png", "http://169.254.169.254/latest/meta-data", "file:///etc/passwd"):
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.generate(prompt="a cat", extra_body={"image": address})
        assert caught.value.param == "image"


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(model="no-such-model", prompt="a cat")
    assert caught.value.code == "model_not_found"


def test_models_are_listed_and_found(client):
    ids = [m.id for m in client.models.list()]
    assert "easel-mini" in ids
    assert client.models.retrieve("easel-mini").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody/nothing")


def test_many_callers_at_once_get_what_they_would_alone(client):
    def one(seed):
        steps = (4, 7, 10)[seed % 3]
        return client.images.generate(
            prompt="a pink heart", response_format="b64_json", extra_body={"seed": seed, "steps": steps}
        ).data[0].b64_json

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(one, range(8)))
    assert together == [one(seed) for seed in range(8)]


@pytest.mark.parametrize("example, file", [("generate.py", "easel.png"), ("stream.py", "stream.png")])
def test_the_examples_run(tmp_path, example, file):
    subprocess.run([sys.executable, EXAMPLES / example], cwd=tmp_path, check=True)
    Image.open(tmp_path / file).load()
