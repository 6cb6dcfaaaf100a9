// The playground: one page over the public API, with nothing that another client could not do.
"use strict";

const $ = (id) => document.getElementById(id);
const state = { models: [], samplers: [], schedules: [], job: null, watch: null, oldest: null };

// ---------------------------------------------------------------- calls

class ApiError extends Error {
  constructor(status, error) {
    super(error.message || `The server answered ${status}.`);
    this.status = status;
    this.param = error.param;
  }
}

function headers(more = {}) {
  const key = localStorage.getItem("easel-key");
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}

async function call(path, options = {}) {
  const init = { ...options, headers: headers(options.body ? { "content-type": "application/json" } : {}) };
  let reply;
  try {
    reply = await fetch(path, init);
  } catch (e) {
    throw new ApiError(0, { message: "The server cannot be reached." });
  }
  if (reply.status === 401) {
    await askForKey();
    return call(path, options);
  }
  if (reply.status === 204) return null;
  const body = parse(await reply.text());
  if (!reply.ok) throw new ApiError(reply.status, body.error || {});
  return body;
}

// Seeds may be larger than the numbers that JavaScript holds exactly, so they are kept as text.
function parse(text) {
  try {
    return JSON.parse(text.replace(/"seed":\s*(\d+)/g, '"seed":"$1"'));
  } catch (e) {
    return {};
  }
}

let asking = null;
function askForKey() {
  asking ||= new Promise((resolve) => {
    const dialog = $("key-dialog");
    $("key-form").onsubmit = () => {
      localStorage.setItem("easel-key", $("key").value.trim());
      asking = null;
      resolve();
    };
    dialog.oncancel = (event) => event.preventDefault();
    dialog.showModal();
  });
  return asking;
}

// EventSource cannot send a key, so the stream is read by hand.
async function* events(path, signal) {
  let last = null;
  while (!signal.aborted) {
    let reply;
    try {
      reply = await fetch(path, { headers: headers(last ? { "last-event-id": last } : {}), signal });
    } catch (e) {
      // The server is away, perhaps for a restart, which the job survives.
      if (signal.aborted) return;
      progress(0, "the server is away, trying again");
      await pause(2000);
      continue;
    }
    if (reply.status === 204) return;
    if (!reply.ok) throw new ApiError(reply.status, (await reply.json().catch(() => ({}))).error || {});
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      let chunk;
      try {
        chunk = await reader.read();
      } catch (e) {
        break;
      }
      if (chunk.done) break;
      text += chunk.value.replace(/\r/g, "");
      let end;
      while ((end = text.indexOf("\n\n")) >= 0) {
        const event = { name: "message", data: "" };
        for (const line of text.slice(0, end).split("\n")) {
          if (line.startsWith("event:")) event.name = line.slice(6).trim();
          else if (line.startsWith("data:")) event.data += line.slice(5).trim();
          else if (line.startsWith("id:")) last = line.slice(3).trim();
        }
        text = text.slice(end + 2);
        if (event.data) yield { name: event.name, data: JSON.parse(event.data) };
      }
    }
    // A cut stream is taken up again where it was left.
    await pause(1000);
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// ---------------------------------------------------------------- the form

function fill(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) => new Option(text, value, false, value === chosen)));
}

function model() {
  return state.models.find((m) => m.id === $("model").value);
}

function showModel() {
  const m = model();
  if (!m) return;
  offerPictures(m.abilities);
  showSize();
  $("steps").value = m.defaults.steps;
  $("guidance").value = m.defaults.guidance;
  const names = state.samplers.filter((s) => !m.samplers || m.samplers.includes(s.name));
  fill($("sampler"), names.map((s) => [s.name, s.title || s.name]), m.defaults.sampler);
  $("model-note").textContent = m.description || "";
  $("negative-field").hidden = m.abilities && m.abilities.negative_prompt === false;
  showSchedules();
  showValues();
}

// With a picture, no size is that picture's.
function showSize() {
  const { width, height } = model().defaults;
  for (const [id, native] of [["width", width], ["height", height]]) {
    $(id).value = hasPicture() ? "" : native;
    $(id).placeholder = hasPicture() ? "auto" : "";
  }
}

function showSchedules() {
  const sampler = state.samplers.find((s) => s.name === $("sampler").value);
  const names = sampler && sampler.schedules && sampler.schedules.length ? sampler.schedules : ["default"];
  fill($("schedule"), names.map((s) => [s, s.replaceAll("_", " ")]), "default");
}

function showValues() {
  $("steps-value").textContent = $("steps").value;
  $("guidance-value").textContent = $("guidance").value;
}

function request() {
  const body = {
    model: $("model").value,
    prompt: $("prompt").value,
    steps: Number($("steps").value),
    guidance: Number($("guidance").value),
    sampler: $("sampler").value,
    schedule: $("schedule").value,
    n: Number($("n").value),
    cache: false,
    ...pictureFields(),
  };
  for (const side of ["width", "height"]) if ($(side).value) body[side] = Number($(side).value);
  if ($("negative").value && !$("negative-field").hidden) body.negative_prompt = $("negative").value;
  // Put in as text: a seed may be larger than the numbers that JavaScript holds exactly.
  const seed = $("seed").value.trim();
  const text = JSON.stringify(body);
  return seed ? `${text.slice(0, -1)},"seed":${seed}}` : text;
}

// ---------------------------------------------------------------- one job

function problem(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

function busy(on) {
  $("cancel").hidden = !on;
  $("progress").hidden = !on;
}

function progress(share, text) {
  const percent = Math.round(share * 100);
  $("bar").style.width = `${percent}%`;
  $("bar").parentElement.setAttribute("aria-valuenow", percent);
  $("progress-text").textContent = text;
}

function frames(count, width, height) {
  $("canvas").replaceChildren(
    ...Array.from({ length: count }, (_, i) => {
      const figure = document.createElement("figure");
      const img = document.createElement("img");
      img.width = width;
      img.height = height;
      img.alt = "";
      img.className = "preview";
      img.hidden = true;
      const caption = document.createElement("figcaption");
      caption.textContent = count > 1 ? `picture ${i + 1}` : "";
      figure.append(img, caption);
      return figure;
    }),
  );
}

function paint(index, source, alt) {
  const img = $("canvas").querySelectorAll("img")[index];
  if (!img) return;
  img.src = source;
  img.hidden = false;
  if (alt !== undefined) {
    img.className = "";
    img.alt = alt;
  }
}

function seconds(ms) {
  return ms == null ? "" : ms < 950 ? ", under a second to go" : `, about ${Math.round(ms / 1000)} s to go`;
}

function step(event) {
  const job = event.data.job || event.data;
  switch (event.name) {
    case "queued": {
      const ahead = job.queue_position;
      progress(0, ahead ? `waiting, ${ahead} ahead${seconds(job.eta_ms)}` : `waiting${seconds(job.eta_ms)}`);
      break;
    }
    case "loading": {
      const { model, done, total, fetching } = event.data.loading;
      const share = total ? `, ${Math.round((100 * done) / total)} %` : "";
      progress(job.progress || 0, `${fetching ? "fetching" : "loading"} ${model}${share}`);
      break;
    }
    case "started":
      progress(0, "starting");
      break;
    case "progress":
      progress(job.progress, `step ${event.data.step} of ${event.data.steps}${seconds(job.eta_ms)}`);
      break;
    case "preview":
      paint(event.data.image ?? event.data.index ?? 0, `data:image/png;base64,${event.data.b64_json}`);
      break;
  }
}

async function watch(job) {
  const control = new AbortController();
  if (state.watch) state.watch.abort();
  state.watch = control;
  state.job = job;
  problem("");
  $("facts").hidden = true;
  frames(job.request.n, job.request.width, job.request.height);
  busy(true);
  progress(job.progress || 0, job.status);
  // On a phone the picture is below the form.
  $("progress").scrollIntoView({ block: "nearest", behavior: "smooth" });
  try {
    for await (const event of events(`/v1/jobs/${job.id}/events`, control.signal)) {
      if (["succeeded", "failed", "canceled"].includes(event.name)) break;
      step(event);
    }
  } catch (e) {
    if (!control.signal.aborted) problem(e.message);
  }
  if (control.signal.aborted) return;
  show(await call(`/v1/jobs/${job.id}`));
  refreshGallery();
}

function fact(name, ...value) {
  const dt = document.createElement("dt");
  const dd = document.createElement("dd");
  dt.textContent = name;
  dd.append(...value);
  $("facts").append(dt, dd);
}

function link(text, href, download) {
  const a = document.createElement("a");
  a.textContent = text;
  a.href = href;
  if (download) a.download = download;
  return a;
}

function startFrom(url) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "start from it";
  button.onclick = () => choosePictures([url]);
  return button;
}

function show(job) {
  state.job = job;
  busy(!["succeeded", "failed", "canceled"].includes(job.status));
  problem(job.status === "failed" ? job.error.message : "");
  const r = job.request;
  if (job.status === "canceled") {
    $("canvas").replaceChildren(Object.assign(document.createElement("p"), { className: "hint", textContent: "Canceled." }));
  } else if (job.outputs.length) {
    frames(job.outputs.length, r.width, r.height);
    for (const output of job.outputs) {
      paint(output.index, output.url, r.prompt);
      const caption = $("canvas").querySelectorAll("figcaption")[output.index];
      const extension = output.content_type.split("/")[1];
      caption.replaceChildren(`seed ${output.seed} · `, link("download", output.url, `easel-${job.id}-${output.index}.${extension}`));
      if (canBring(model()?.abilities)) caption.append(" · ", startFrom(output.url));
    }
  }
  $("facts").replaceChildren();
  fact("Prompt", r.prompt);
  if (r.negative_prompt) fact("Negative", r.negative_prompt);
  fact("Model", job.model);
  fact("Size", `${r.width} × ${r.height}`);
  fact("Steps", `${r.steps}, guidance ${r.guidance}`);
  if (r.images) fact("From", r.images.map((image) => `${image.width} × ${image.height}`).join(", ") + (r.mask ? ", with a mask" : ""));
  if (r.strength != null) fact("Strength", String(r.strength));
  fact("Sampler", `${r.sampler}, ${r.schedule} schedule`);
  if (job.outputs.length) fact("Seed", String(job.outputs[0].seed));
  if (job.metrics) fact("Took", `${(job.metrics.latency_ms / 1000).toFixed(2)} s, ${job.metrics.batch_rows_mean.toFixed(1)} rows a model call`);
  for (const warning of job.warnings || []) fact("Note", warning);
  fact("Job", job.id);
  $("facts").hidden = false;
}

// ---------------------------------------------------------------- gallery and queue

function tile(job) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = job.request.prompt;
  const first = job.outputs[0];
  let picture;
  if (first) {
    picture = document.createElement("img");
    picture.src = first.url;
    picture.loading = "lazy";
    picture.alt = job.request.prompt;
  } else {
    picture = document.createElement("div");
    picture.className = "blank";
    picture.textContent = job.status;
  }
  const text = document.createElement("span");
  text.textContent = job.request.prompt || "(no prompt)";
  button.append(picture, text);
  button.onclick = () => {
    window.scrollTo({ top: 0, behavior: "smooth" });
    if (["queued", "running"].includes(job.status)) watch(job);
    else {
      if (state.watch) state.watch.abort();
      show(job);
    }
  };
  return button;
}

async function page(after) {
  const list = await call(`/v1/jobs?limit=24${after ? `&after=${after}` : ""}`);
  const jobs = list.data;
  state.oldest = jobs.length ? jobs[jobs.length - 1].id : state.oldest;
  $("more").hidden = !(list.has_more ?? jobs.length === 24);
  return jobs.map(tile);
}

async function refreshGallery() {
  try {
    $("gallery").replaceChildren(...(await page(null)));
  } catch (e) {
    problem(e.message);
  }
}

async function refreshQueue() {
  if (document.hidden) return;
  try {
    const queue = await call("/v1/queue");
    $("queue").textContent = queue.running || queue.waiting ? `${queue.running} running, ${queue.waiting} waiting` : "idle";
  } catch (e) {
    $("queue").textContent = "not reachable";
  }
}

// ---------------------------------------------------------------- start

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  problem("");
  $("go").disabled = true;
  try {
    const job = await call("/v1/jobs", { method: "POST", body: request() });
    watch(job);
  } catch (e) {
    problem(e.param ? `${e.message} (${e.param})` : e.message);
  } finally {
    $("go").disabled = false;
  }
});
$("cancel").addEventListener("click", () => {
  if (state.job) call(`/v1/jobs/${state.job.id}/cancel`, { method: "POST" }).catch((e) => problem(e.message));
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("model").addEventListener("change", showModel);
$("form").addEventListener("pictures", showSize);
$("sampler").addEventListener("change", showSchedules);
for (const id of ["steps", "guidance"]) $(id).addEventListener("input", showValues);
$("reseed").addEventListener("click", () => ($("seed").value = ""));
$("more").addEventListener("click", async () => $("gallery").append(...(await page(state.oldest))));

(async () => {
  try {
    const [models, samplers] = await Promise.all([call("/v1/models"), call("/v1/samplers")]);
    state.models = models.data;
    state.samplers = samplers.data;
    fill($("model"), state.models.map((m) => [m.id, m.id]), (state.models.find((m) => m.default) || state.models[0]).id);
    showModel();
    refreshGallery();
    refreshQueue();
    setInterval(refreshQueue, 2000);
  } catch (e) {
    problem(e.message);
  }
})();
