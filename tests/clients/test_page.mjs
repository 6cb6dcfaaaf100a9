// The playground page in Chromium against a running server (EASEL_URL).
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import test from "node:test";
import { chromium } from "playwright-core";

const url = process.env.EASEL_URL;
const shots = process.env.EASEL_SCREENSHOTS;
if (shots) mkdirSync(shots, { recursive: true });

// `expected` matches what the browser may report on its console without it being a fault of the page.
async function open(size, then, expected = /^$/) {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync"],
  });
  try {
    const page = await browser.newPage({ viewport: size });
    const faults = [];
    page.on("pageerror", (error) => faults.push(error.message));
    page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
    await page.goto(url);
    await page.waitForFunction(() => document.querySelector("#model").options.length > 0);
    await then(page);
    assert.deepEqual(faults.filter((fault) => !expected.test(fault)), []);
  } finally {
    await browser.close();
  }
}

const shot = (page, name) => shots && page.screenshot({ path: `${shots}/${name}.png`, fullPage: true });
const finished = (page) => page.waitForSelector("#canvas img:not(.preview):not([hidden])", { timeout: 60000 });

test("a prompt becomes a picture with its parameters, a download and a place in the gallery", async () => {
  await open({ width: 1280, height: 900 }, async (page) => {
    await page.fill("#prompt", "a red circle on a blue background");
    await page.fill("#seed", "1");
    await page.click("#go");
    await finished(page);
    const [width, corner, centre] = await page.$eval("#canvas img", async (img) => {
      await img.decode();
      const canvas = Object.assign(document.createElement("canvas"), { width: img.naturalWidth, height: img.naturalHeight });
      const context = canvas.getContext("2d");
      context.drawImage(img, 0, 0);
      const at = (x, y) => [...context.getImageData(x * canvas.width, y * canvas.height, 1, 1).data];
      return [img.naturalWidth, at(0.06, 0.06), at(0.5, 0.5)];
    });
    assert.ok(width >= 64);
    assert.ok(centre[0] > centre[2] + 80, `red in the middle: ${centre}`);
    assert.ok(corner[2] > corner[0] + 60, `blue in the corner: ${corner}`);
    assert.match(await page.textContent("#facts"), /a red circle on a blue background/);
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#canvas a")]);
    assert.match(download.suggestedFilename(), /\.png$/);
    await page.waitForFunction(() => document.querySelectorAll("#gallery button").length > 0);
    await shot(page, "page");
  });
});

test("progress and previews are shown while it paints, and cancel stops it", async () => {
  await open({ width: 1280, height: 900 }, async (page) => {
    await page.fill("#n", "4");
    await page.$eval("#steps", (slider) => {
      slider.max = 150;
      slider.value = 150;
    });
    await page.click("#go");
    await page.waitForFunction(() => /step \d+ of 150/.test(document.querySelector("#progress-text").textContent));
    await page.waitForSelector("#canvas img.preview:not([hidden])", { timeout: 30000 });
    await shot(page, "progress");
    await page.click("#cancel");
    await page.waitForSelector("#canvas .hint");
    assert.equal(await page.textContent("#canvas"), "Canceled.");
  });
});

test("a picture is chosen, a mask painted over it, and what was not painted stays", async () => {
  await open({ width: 1280, height: 1000 }, async (page) => {
    await page.fill("#prompt", "a red circle on a blue background");
    await page.fill("#seed", "1");
    await page.click("#go");
    await finished(page);
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#canvas a")]);
    const file = await download.path();
    await page.setInputFiles("#picture", { name: "circle.png", mimeType: "image/png", buffer: readFileSync(file) });
    await page.waitForSelector("#mask-under[src]");
    assert.equal(await page.inputValue("#width"), "");
    assert.ok(await page.isVisible("#strength-field"));
    const paints = await page.isVisible("#mask-tools");
    assert.ok(paints, "the model paints into pictures");
    await page.$eval("#mask-box", (box) => box.scrollIntoView({ block: "center" }));
    const box = await page.locator("#mask").boundingBox();
    await page.mouse.move(box.x + box.width * 0.2, box.y + box.height * 0.1);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width * 0.2, box.y + box.height * 0.9, { steps: 8 });
    await page.mouse.up();
    assert.equal(await page.inputValue("#strength"), "1");
    await shot(page, "mask");
    await page.fill("#prompt", "a yellow star at night");
    await page.$eval("#canvas", (canvas) => canvas.replaceChildren());
    await page.click("#go");
    await finished(page);
    // Far from the brush, each pixel is the file's.
    const same = await page.evaluate(async () => {
      const pixels = async (source) => {
        const img = new Image();
        img.src = source;
        await img.decode();
        const canvas = Object.assign(document.createElement("canvas"), { width: img.naturalWidth, height: img.naturalHeight });
        const context = canvas.getContext("2d");
        context.drawImage(img, 0, 0);
        return (x, y) => [...context.getImageData(x * canvas.width, y * canvas.height, 1, 1).data].join();
      };
      const before = await pixels(document.querySelector("#mask-under").src);
      const after = await pixels(document.querySelector("#canvas img").src);
      return [0.5, 0.7, 0.9].every((x) => [0.1, 0.5, 0.9].every((y) => before(x, y) === after(x, y)));
    });
    assert.ok(same);
    assert.match(await page.textContent("#facts"), /with a mask/);
    await shot(page, "masked");
    await page.click("text=start from it");
    await page.waitForFunction(() => document.querySelector("#mask-under").naturalWidth > 0);
    await page.click("#no-picture");
    assert.ok(!(await page.isVisible("#mask-box")));
    assert.notEqual(await page.inputValue("#width"), "");
  });
});

test("a refused request is explained", async () => {
  await open({ width: 1280, height: 900 }, async (page) => {
    await page.fill("#prompt", "x".repeat(40000));
    await page.click("#go");
    await page.waitForSelector("#error:not([hidden])");
    assert.match(await page.textContent("#error"), /prompt/);
  }, /status of 400/);
});

test("a phone shows everything in one column", async () => {
  await open({ width: 390, height: 844 }, async (page) => {
    await page.click("#go");
    await finished(page);
    const [inner, outer] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
    assert.ok(inner <= outer, `the page is ${inner} wide in a window of ${outer}`);
    await shot(page, "phone");
  });
});
