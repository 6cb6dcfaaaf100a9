// The official OpenAI client for JavaScript against a running server (EASEL_URL).
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, copyFileSync, readFileSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import OpenAI, { toFile } from "openai";

const url = process.env.EASEL_URL;
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const png = (text) => Buffer.from(text, "base64").subarray(1, 4).toString() === "PNG";

test("generates a picture and gives its seed back", async () => {
  const reply = await client.images.generate({ prompt: "a red heart", response_format: "b64_json", seed: 11, steps: 4 });
  assert.ok(png(reply.data[0].b64_json));
  assert.equal(reply.data[0].seed, 11);
});

test("streams partial pictures, then the whole one", async () => {
  const stream = await client.images.generate({ prompt: "a moon at night", stream: true, partial_images: 2, steps: 6 });
  const types = [];
  for await (const event of stream) {
    assert.ok(png(event.b64_json));
    types.push(event.type);
  }
  assert.deepEqual(types, [
    "image_generation.partial_image",
    "image_generation.partial_image",
    "image_generation.completed",
  ]);
});

test("edits and varies a picture", async () => {
  const made = await client.images.generate({ prompt: "a red heart", response_format: "b64_json", seed: 11, steps: 4 });
  const file = () => toFile(Buffer.from(made.data[0].b64_json, "base64"), "heart.png", { type: "image/png" });
  const edit = await client.images.edit({ image: await file(), prompt: "a blue heart", response_format: "b64_json", steps: 4 });
  assert.ok(png(edit.data[0].b64_json));
  const list = await client.images.edit({ image: [await file()], prompt: "a blue heart", model: "gpt-image-1", n: 2, steps: 4 });
  assert.ok(list.data.length === 2 && list.data.every((image) => png(image.b64_json)));
  const varied = await client.images.createVariation({ image: await file(), response_format: "b64_json", steps: 4 });
  assert.ok(png(varied.data[0].b64_json));
  const types = [];
  const stream = await client.images.edit({ image: await file(), prompt: "a heart", stream: true, partial_images: 1, steps: 4 });
  for await (const event of stream) types.push(event.type);
  assert.equal(types.at(-1), "image_edit.completed");
  await assert.rejects(client.images.edit({ image: await toFile(Buffer.from("hello"), "a.png"), prompt: "x" }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.deepEqual([error.param, error.code], ["image", "invalid_image"]);
    return true;
  });
});

test("a bad value is a BadRequestError with the field's name", async () => {
  await assert.rejects(client.images.generate({ prompt: "a cat", n: 99 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "n");
    return true;
  });
});

test("an aborted request is canceled on the server", async () => {
  const abort = new AbortController();
  const call = client.images.generate({ prompt: "a slow cat", steps: 150, n: 10 }, { signal: abort.signal });
  setTimeout(() => abort.abort(), 300);
  await assert.rejects(call);
  for (let i = 0; i < 100; i++) {
    const jobs = await (await fetch(`${url}/v1/jobs?limit=5`)).json();
    const job = jobs.data.find((j) => j.request.prompt === "a slow cat");
    if (job?.status === "canceled") return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.fail("the job went on");
});

test("the example runs", () => {
  const dir = mkdtempSync(join(tmpdir(), "easel-"));
  copyFileSync(join(import.meta.dirname, "../../examples/javascript/generate.mjs"), join(dir, "generate.mjs"));
  symlinkSync(join(import.meta.dirname, "node_modules"), join(dir, "node_modules"));
  const run = spawnSync(process.execPath, ["generate.mjs"], { cwd: dir, encoding: "utf8" });
  assert.equal(run.status, 0, run.stderr);
  assert.equal(readFileSync(join(dir, "easel.png")).subarray(1, 4).toString(), "PNG");
});
