// Shows that a login was refused.
import { applyTheme } from "./theme.js";

applyTheme();
if (location.search === "?refused") {
  document.getElementById("token-refused").hidden = false;
}
