// An 8-bit grey PNG: a browser's canvas only writes colour ones, four times the size and not what a mask is.
const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const GREY_8_BIT = [8, 0, 0, 0, 0]; // depth, colour type, compression, filter, interlace

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit += 1) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

function crcOf(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc;
}

function bigEndian(number) {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setInt32(0, number);
  return bytes;
}

function chunk(type, data) {
  const body = new Uint8Array(data.length + 4);
  body.set(new TextEncoder().encode(type));
  body.set(data, 4);
  return [bigEndian(data.length), body, bigEndian(crcOf(body))];
}

async function deflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** @param grey width * height bytes, row by row; resolves with a Blob */
export async function greyPng(grey, width, height) {
  const rows = new Uint8Array((width + 1) * height); // Each row begins with its filter: none.
  for (let y = 0; y < height; y += 1) rows.set(grey.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const header = [...bigEndian(width), ...bigEndian(height), ...GREY_8_BIT];
  const parts = [...chunk("IHDR", header), ...chunk("IDAT", await deflated(rows)), ...chunk("IEND", [])];
  return new Blob([new Uint8Array(SIGNATURE), ...parts], { type: "image/png" });
}

/** The bytes of a Blob in base64, without the "data:" before it. */
export function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
