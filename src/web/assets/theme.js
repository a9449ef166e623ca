// Light and dark: as the system has it, unless somebody chose otherwise here.
const KEY = "visit-pacer-theme";

const chosen = () => localStorage.getItem(KEY);
const systems = () => (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");

export const theme = () => chosen() ?? systems();

export function applyTheme() {
  document.documentElement.dataset.theme = theme();
}

export function switchTheme() {
  localStorage.setItem(KEY, theme() === "dark" ? "light" : "dark");
  applyTheme();
}

// A colour of the style sheet.
export const colour = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
