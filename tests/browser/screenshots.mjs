// Takes the pictures in deploy/pictures from a running agent:
//   node screenshots.mjs http://127.0.0.1:8787 ID ../../deploy/pictures
import { chromium } from "playwright-core";

const [, , base, id, folder] = process.argv;
const desktop = { width: 1280, height: 800 };
const phone = { width: 390, height: 844 };
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
for (const [name, viewport, colorScheme, path, sign] of [
  ["dashboard", desktop, "light", "/", ".grid-row.body:not([hidden])"],
  ["dashboard-dark", desktop, "dark", "/", ".grid-row.body:not([hidden])"],
  ["dashboard-phone", phone, "light", "/", ".grid-row.body:not([hidden])"],
  ["dashboard-phone-dark", phone, "dark", "/", ".grid-row.body:not([hidden])"],
  ["row", desktop, "light", `/#/distributions/${id}`, "#detail canvas"],
  ["row-dark", desktop, "dark", `/#/distributions/${id}`, "#detail canvas"],
  ["row-phone", phone, "light", `/#/distributions/${id}`, "#detail canvas"],
  ["health", desktop, "light", "/#/health", "#realtime-events li"],
  ["health-dark", desktop, "dark", "/#/health", "#realtime-events li"],
  ["health-phone", phone, "dark", "/#/health", "#realtime-events li"],
]) {
  const page = await browser.newPage({ viewport, colorScheme });
  await page.goto(base + path);
  await page.locator(sign).first().waitFor();
  await page.waitForTimeout(7000);
  await page.screenshot({ path: `${folder}/${name}.png` });
  await page.close();
}
await browser.close();
