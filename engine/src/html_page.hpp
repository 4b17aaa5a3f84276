// engine/src/html_page.hpp -- the fixed parts of the page around a drawing.
#pragma once

#include <string_view>

namespace troupe::html_page {

inline constexpr std::string_view head = R"html(<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<style>
body{font:14px Helvetica,Arial,sans-serif;margin:16px;color:#000;background:#fff}
#picture{overflow:auto;border:1px solid #ccc}
#picture.live{overflow:hidden}
#picture.live svg{display:block;width:100%;height:auto;cursor:grab}
#picture.live svg{touch-action:none;user-select:none}
#picture .b rect{stroke-width:.4;vector-effect:non-scaling-stroke}
#picture .b>g:hover rect{stroke:#000;stroke-width:1}
#bar{margin:0 0 8px}
#bar button{font:inherit;min-width:2.5em}
#bar span{color:#555;margin-left:8px}
#tip{position:fixed;pointer-events:none;max-width:24em}
#tip{background:#fff;border:1px solid #555;padding:4px 8px}
pre{line-height:1.35;overflow:auto}
</style>
)html";

/// What stands before the drawing; the buttons appear when the script runs.
inline constexpr std::string_view before_drawing = R"html(<div id="bar" hidden>
<button id="in" aria-label="zoom in">+</button>
<button id="out" aria-label="zoom out">&minus;</button>
<button id="all">all</button>
<span>Wheel or pinch: zoom. Drag: move. Point at a box: what it is.</span>
</div>
<div id="picture">
)html";

/// What stands behind the drawing. The view is the part of the drawing that begins at `x`, `y`, the
/// share `k` of its width and height. Names, numbers and legend keep their size and their edge.
inline constexpr std::string_view behind_drawing = R"html(</div>
<div id="tip" hidden></div>
<script>
"use strict";
const byId = id => document.getElementById(id);
const picture = byId("picture"), tip = byId("tip");
const svg = picture.querySelector("svg");
const W = svg.viewBox.baseVal.width, H = svg.viewBox.baseVal.height;
const deepest = 1 / 64;
let x = 0, y = 0, k = 1;

const number = (element, name) => Number(element.getAttribute(name));
const names = [...svg.querySelectorAll("text[text-anchor=end]")];
const numbers = [...svg.querySelectorAll("text[text-anchor=middle]:not(.m)")];
const fixed = [...svg.querySelectorAll("g.k, text[text-anchor=middle].m")];
function cover(x, y, width, height) {
  const rect = document.createElementNS(svg.namespaceURI, "rect");
  for (const [name, value] of Object.entries({x, y, width, height, fill: "#fff"}))
    rect.setAttribute(name, value);
  return rect;
}
const left = cover(0, 0, names.length ? number(names[0], "x") + 4 : 0, H);
const bottom = cover(0, numbers.length ? number(numbers[0], "y") - 13 : H, W, H);
const top_ = cover(0, 0, W, 36);
svg.append(left, ...names, bottom, ...numbers, top_, ...fixed);

let isDue = false;
/// Once per frame, however many events there are.
function show() {
  if (!isDue) requestAnimationFrame(draw);
  isDue = true;
}
function draw() {
  isDue = false;
  k = Math.min(1, Math.max(deepest, k));
  x = Math.min(W * (1 - k), Math.max(0, x));
  y = Math.min(H * (1 - k), Math.max(0, y));
  svg.setAttribute("viewBox", [x, y, W * k, H * k].join(" "));
  const place = (element, dx, dy) =>
    element.setAttribute("transform", `translate(${dx},${dy}) scale(${k})`);
  for (const text of names) place(text, x, (number(text, "y") - 4) * (1 - k));
  for (const text of numbers) place(text, number(text, "x") * (1 - k), y);
  for (const element of [left, bottom, top_, ...fixed]) place(element, x, y);
}
function zoom(factor, at) {
  const before = k;
  k = Math.min(1, Math.max(deepest, k * factor));
  const area = svg.getBoundingClientRect();
  x += (at.x - area.left) / area.width * W * (before - k);
  y += (at.y - area.top) / area.height * H * (before - k);
  show();
}
function zoomMiddle(factor) {
  const area = svg.getBoundingClientRect();
  zoom(factor, {x: area.left + area.width / 2, y: area.top + area.height / 2});
}
byId("in").onclick = () => zoomMiddle(1 / 1.6);
byId("out").onclick = () => zoomMiddle(1.6);
byId("all").onclick = () => { k = 1; show(); };
svg.addEventListener("wheel", event => {
  event.preventDefault();
  const perUnit = event.deltaMode ? 0.05 : 0.002;
  zoom(Math.exp(event.deltaY * perUnit), {x: event.clientX, y: event.clientY});
}, {passive: false});

const pointers = new Map();
/// The middle of all fingers, and how far they are from it.
function grip() {
  const all = [...pointers.values()];
  const middle = {x: 0, y: 0};
  for (const p of all) { middle.x += p.x / all.length; middle.y += p.y / all.length; }
  const spread = all.reduce((sum, p) => sum + Math.hypot(p.x - middle.x, p.y - middle.y), 0);
  return {middle, spread};
}
svg.addEventListener("pointerdown", event => {
  svg.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, {x: event.clientX, y: event.clientY});
  tip.hidden = true;
});
for (const end of ["pointerup", "pointercancel"])
  svg.addEventListener(end, event => pointers.delete(event.pointerId));
svg.addEventListener("pointermove", event => {
  if (!pointers.has(event.pointerId)) return explain(event);
  const before = grip();
  pointers.set(event.pointerId, {x: event.clientX, y: event.clientY});
  const after = grip();
  const scale = W * k / svg.clientWidth;
  x -= (after.middle.x - before.middle.x) * scale;
  y -= (after.middle.y - before.middle.y) * scale;
  zoom(before.spread && after.spread ? before.spread / after.spread : 1, after.middle);
});
svg.addEventListener("pointerleave", () => { tip.hidden = true; });
function explain(event) {
  const box = event.target.closest(".b>g");
  tip.hidden = !box;
  if (!box) return;
  const title = box.querySelector("title");
  if (title) { box.dataset.tip = title.textContent; title.remove(); }
  tip.textContent = box.dataset.tip;
  tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + "px";
}
picture.className = "live";
byId("bar").hidden = false;
</script>
)html";

}  // namespace troupe::html_page
