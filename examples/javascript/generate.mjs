// Draws a picture with the official OpenAI client for JavaScript, pointed at easel.
//
//     npm install openai
//     node generate.mjs "a yellow star at night" star.png
import { writeFile } from "node:fs/promises";
import OpenAI from "openai";

const [prompt = "a yellow star at night", file = "easel.png"] = process.argv.slice(2);
const client = new OpenAI({
  baseURL: `${process.env.EASEL_URL ?? "http://127.0.0.1:8080"}/v1`,
  apiKey: process.env.EASEL_KEY ?? "none",
});
// Fields that OpenAI does not have are passed on as they are.
const reply = await client.images.generate({ prompt, response_format: "b64_json", seed: 3, steps: 20 });
await writeFile(file, Buffer.from(reply.data[0].b64_json, "base64"));
console.log(`${file}: ${reply.size}, seed ${reply.data[0].seed}`);
