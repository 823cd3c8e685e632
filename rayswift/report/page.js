"use strict";
// Times as the reader's clock has them.
for (const time of document.querySelectorAll("time")) {
  time.textContent = new Date(time.dateTime).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

// The values under the pointer.
for (const plot of document.querySelectorAll(".plot")) {
  const lines = JSON.parse(plot.nextElementSibling.textContent);
  const hair = Object.assign(document.createElement("div"), { className: "hair", hidden: true });
  const tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
  plot.append(hair, tip);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const at = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const nearest = (line) => line.x.reduce((best, x, i) => Math.abs(x - at) < Math.abs(line.x[best] - at) ? i : best, 0);
    const main = lines[0], index = nearest(main);
    const values = lines.map((line) => `${line.name} ${line.text[nearest(line)]}`);
    tip.innerText = [`step ${main.step[index].toLocaleString()}`, ...values].join("\n");
    hair.hidden = tip.hidden = false;
    hair.style.left = `${100 * main.x[index]}%`;
    tip.style.left = main.x[index] < 0.5 ? `calc(${100 * main.x[index]}% + 8px)` : "auto";
    tip.style.right = main.x[index] < 0.5 ? "auto" : `calc(${100 - 100 * main.x[index]}% + 8px)`;
  });
  plot.addEventListener("pointerleave", () => { hair.hidden = tip.hidden = true; });
}

// A page of a run that goes on reloads itself; one that is no longer written says so.
const page = document.documentElement.dataset;
if (page.state === "running") {
  const silent_s = Math.round(Date.now() / 1000 - Number(page.updated));
  if (silent_s > 90) {
    page.state = "killed";
    document.querySelector(".state").textContent = "no sign of life";
    const silence = document.getElementById("silent");
    silence.textContent = `; not since: the run was killed or its machine is gone. Continue it with --resume auto.`;
  } else {
    setTimeout(() => document.querySelector("details[open]") || location.reload(), 10000);
  }
}
