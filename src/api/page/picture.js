// Pictures that a request starts from: chosen, dropped or taken from a result, with a mask painted over them.
"use strict";

const byId = (id) => document.getElementById(id);

// What is chosen: addresses or data URIs, in order.
const chosen = { pictures: [], abilities: {}, painted: false };

function canBring(abilities) {
  return Boolean(abilities && (abilities.image_to_image || abilities.inpaint || abilities.edit));
}

// Shows what the model can do with pictures, and no more.
function offerPictures(abilities) {
  chosen.abilities = abilities || {};
  byId("picture-field").hidden = !canBring(abilities);
  byId("picture").multiple = (abilities?.references ?? 0) > 1;
  byId("picture-legend").textContent = abilities?.needs_mask
    ? "A picture to paint into (this model needs one)"
    : abilities?.needs_image
      ? "Start from a picture (this model needs one)"
      : abilities?.edit
        ? "Change a picture"
        : "Start from a picture";
  if (!canBring(abilities)) dropPictures();
  else if (chosen.pictures.length > Math.max(1, abilities.references)) choosePictures(chosen.pictures.slice(0, Math.max(1, abilities.references)));
  else showPictures();
}

function hasPicture() {
  return chosen.pictures.length > 0;
}

function masked() {
  return chosen.painted && !byId("mask-box").hidden;
}

// The fields of a request.
function pictureFields() {
  if (!hasPicture()) return {};
  const fields = { image: chosen.pictures.length > 1 ? chosen.pictures : chosen.pictures[0] };
  if (!byId("strength-field").hidden) fields.strength = Number(byId("strength").value);
  if (masked()) fields.mask = maskUri();
  return fields;
}

function choosePictures(pictures) {
  chosen.pictures = pictures;
  clearMask();
  if (pictures.length) byId("mask-under").src = pictures[0];
  else byId("mask-under").removeAttribute("src");
  showPictures();
  byId("form").dispatchEvent(new CustomEvent("pictures"));
}

function dropPictures() {
  byId("picture").value = "";
  if (hasPicture()) choosePictures([]);
  else showPictures();
}

function showPictures() {
  const { abilities, pictures } = chosen;
  const one = pictures.length === 1;
  byId("no-picture").hidden = !hasPicture();
  byId("mask-box").hidden = !one;
  byId("mask").hidden = !abilities.inpaint;
  byId("mask-tools").hidden = !(one && abilities.inpaint);
  byId("pictures").hidden = pictures.length < 2;
  byId("pictures").replaceChildren(
    ...pictures.map((source) => Object.assign(document.createElement("img"), { src: source, alt: "" })),
  );
  showStrength();
}

// A model that looks at the picture has no use for a strength, unless a mask is painted.
function showStrength() {
  const { abilities } = chosen;
  const starts = abilities.image_to_image && !abilities.edit;
  const shown = hasPicture() && (starts || masked());
  const before = byId("strength-field").hidden;
  byId("strength-field").hidden = !shown;
  if (before && shown) resetStrength();
  byId("strength-value").textContent = byId("strength").value;
}

function resetStrength() {
  const { abilities } = chosen;
  byId("strength").value = (masked() ? abilities.inpaint_strength : abilities.strength) ?? 0.8;
  byId("strength-value").textContent = byId("strength").value;
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function takeFiles(files) {
  const most = Math.max(1, chosen.abilities.references ?? 0);
  const pictures = [...files].filter((file) => file.type.startsWith("image/")).slice(0, most);
  if (pictures.length) choosePictures(await Promise.all(pictures.map(read)));
}

// ---------------------------------------------------------------- the mask

const mask = byId("mask");
const pen = mask.getContext("2d");
let last = null;

// The mask has the picture's shape, whatever size it is shown in; the server brings it to the picture's size.
const MASK_SIDE = 1024;
function clearMask() {
  const { naturalWidth: width, naturalHeight: height } = byId("mask-under");
  const scale = Math.min(1, MASK_SIDE / Math.max(width, height, 1));
  mask.width = Math.max(1, Math.round(width * scale));
  mask.height = Math.max(1, Math.round(height * scale));
  chosen.painted = false;
}

byId("mask-under").addEventListener("load", () => {
  clearMask();
  showStrength();
});

function place(event) {
  const box = mask.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * mask.width, ((event.clientY - box.top) / box.height) * mask.height];
}

function stroke(event) {
  const [x, y] = place(event);
  const erasing = byId("erase").getAttribute("aria-pressed") === "true";
  pen.globalCompositeOperation = erasing ? "destination-out" : "source-over";
  pen.strokeStyle = "#fff";
  pen.lineCap = pen.lineJoin = "round";
  pen.lineWidth = Math.max(1, (Number(byId("brush").value) / 100) * Math.max(mask.width, mask.height));
  pen.beginPath();
  pen.moveTo(...(last || [x, y]));
  pen.lineTo(x, y);
  pen.stroke();
  last = [x, y];
}

mask.addEventListener("pointerdown", (event) => {
  mask.setPointerCapture(event.pointerId);
  last = null;
  stroke(event);
  event.preventDefault();
});
mask.addEventListener("pointermove", (event) => last && stroke(event));
for (const end of ["pointerup", "pointercancel"]) {
  mask.addEventListener(end, () => {
    last = null;
    maskChanged();
  });
}

function maskChanged() {
  const before = masked();
  chosen.painted = pen.getImageData(0, 0, mask.width, mask.height).data.some((value, i) => i % 4 === 3 && value > 127);
  showStrength();
  if (before !== masked()) resetStrength();
}

// White on black, as the API takes it.
function maskUri() {
  const flat = Object.assign(document.createElement("canvas"), { width: mask.width, height: mask.height });
  const context = flat.getContext("2d");
  context.fillStyle = "#000";
  context.fillRect(0, 0, flat.width, flat.height);
  context.drawImage(mask, 0, 0);
  return flat.toDataURL("image/png");
}

// A mask from a file is shown like one that was painted: its white parts, and nothing of the rest.
async function takeMask(file) {
  const picture = new Image();
  picture.src = await read(file);
  await picture.decode();
  pen.globalCompositeOperation = "source-over";
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, mask.width, mask.height);
  pen.drawImage(picture, 0, 0, mask.width, mask.height);
  const pixels = pen.getImageData(0, 0, mask.width, mask.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const grey = 0.299 * pixels.data[i] + 0.587 * pixels.data[i + 1] + 0.114 * pixels.data[i + 2];
    pixels.data.set([255, 255, 255, grey], i);
  }
  pen.putImageData(pixels, 0, 0);
  maskChanged();
}

// ---------------------------------------------------------------- what the person does

byId("picture").addEventListener("change", (event) => takeFiles(event.target.files));
byId("no-picture").addEventListener("click", dropPictures);
byId("no-mask").addEventListener("click", () => {
  clearMask();
  maskChanged();
});
byId("erase").addEventListener("click", (event) => {
  const on = event.target.getAttribute("aria-pressed") === "true";
  event.target.setAttribute("aria-pressed", String(!on));
});
byId("mask-file").addEventListener("change", async (event) => {
  if (event.target.files[0]) await takeMask(event.target.files[0]);
  event.target.value = "";
});
byId("strength").addEventListener("input", () => (byId("strength-value").textContent = byId("strength").value));
const field = byId("picture-field");
for (const name of ["dragover", "dragleave", "drop"]) {
  field.addEventListener(name, (event) => {
    event.preventDefault();
    field.classList.toggle("over", name === "dragover");
    if (name === "drop") takeFiles(event.dataTransfer.files);
  });
}
