// A file that is dropped on the form of /console/try is looked at at once; after a review the pressed button keeps the
// keyboard's focus.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("drop");
  if (form) {
    const input = form.querySelector("input[type=file]");
    for (const name of ["dragover", "dragleave", "drop"]) {
      form.addEventListener(name, (event) => {
        event.preventDefault();
        form.classList.toggle("over", name === "dragover");
        if (name === "drop" && event.dataTransfer.files.length) {
          input.files = event.dataTransfer.files;
          form.requestSubmit();
        }
      });
    }
    input.addEventListener("change", () => input.files.length && form.requestSubmit());
  }
});
let pressed = "";
document.addEventListener("htmx:beforeRequest", () => {
  pressed = document.activeElement ? document.activeElement.id : "";
});
document.addEventListener("htmx:afterSettle", () => {
  const again = pressed && document.getElementById(pressed);
  if (again) again.focus();
});
document.addEventListener("htmx:responseError", (event) => {
  const title = new DOMParser().parseFromString(event.detail.xhr.responseText, "text/html").querySelector(".alert");
  const result = document.getElementById("result");
  if (result && title) {
    const line = document.createElement("p");
    line.className = "alert";
    line.setAttribute("role", "alert");
    line.textContent = title.textContent;
    result.replaceChildren(line);
  }
});
