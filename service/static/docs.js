"use strict";
document.addEventListener("DOMContentLoaded", () => {
  SwaggerUIBundle({ url: "/openapi.json", dom_id: "#interface", deepLinking: false, validatorUrl: null });
});
