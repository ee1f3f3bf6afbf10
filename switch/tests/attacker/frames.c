#include "frames.h"

#include <string.h>

enum {
    NEEDS_CSUM = 1,
    GSO_TCPV4 = 1,
    GSO_UDP = 3,
    GSO_UDP_L4 = 5,
    ETHERNET_LEN = 14,
    IPV4_LEN = 20,
    TCP_LEN = 20,
    UDP_LEN = 8,
    PROTOCOL_TCP = 6,
    PROTOCOL_UDP = 17,
    IPV4_SOURCE_AT = 12,
    TCP_CSUM_AT = 16,
    UDP_CSUM_AT = 6,
};

static void put16(uint8_t *at, size_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static uint32_t sum_words(const uint8_t *bytes, size_t len)
{
    uint32_t sum = 0;

    for (size_t i = 0; i + 1 < len; i += 2)
        sum += (uint32_t)bytes[i] << 8 | bytes[i + 1];
    return sum;
}

static uint16_t fold(uint32_t sum)
{
    while (sum > 0xffff)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

static void write_ipv4(uint8_t *ip, size_t len, uint8_t protocol)
{
    memset(ip, 0, IPV4_LEN);
    ip[0] = 0x45;
    put16(ip + 2, len);
    put16(ip + 6, 0x4000); /* do not fragment */
    ip[8] = 64;
    ip[9] = protocol;
    memcpy(ip + 12, (uint8_t[]){10, 66, 0, 1, 10, 66, 0, 2}, 8);
    put16(ip + 10, (uint16_t)~fold(sum_words(ip, IPV4_LEN)));
}

/* The sum of the pseudo header, which stands in place of a partial checksum. */
static uint16_t pseudo_sum(const uint8_t *ip, size_t len, uint8_t protocol)
{
    return fold(sum_words(ip + IPV4_SOURCE_AT, 8) + protocol + (uint32_t)len);
}

static void put_header(uint8_t *header, uint8_t flags, uint8_t gso, size_t hdr_len, size_t gso_size, size_t start,
                       size_t offset)
{
    /* Little-endian, like the fields. */
    uint16_t fields[4] = {(uint16_t)hdr_len, (uint16_t)gso_size, (uint16_t)start, (uint16_t)offset};

    memset(header, 0, HEADER_LEN);
    header[0] = flags;
    header[1] = gso;
    for (unsigned i = 0; i < 4; i++) {
        header[2 + 2 * i] = (uint8_t)fields[i];
        header[3 + 2 * i] = (uint8_t)(fields[i] >> 8);
    }
}

static void write_tcp(uint8_t *header, uint8_t *ip, size_t len, uint16_t mss)
{
    uint8_t *tcp = ip + IPV4_LEN;
    size_t start = ETHERNET_LEN + IPV4_LEN;

    write_ipv4(ip, len - ETHERNET_LEN, PROTOCOL_TCP);
    put16(tcp, 1024);
    put16(tcp + 2, 5001);
    tcp[12] = TCP_LEN / 4 << 4;
    tcp[13] = 0x10; /* ACK */
    put16(tcp + 14, 0xffff);
    put16(tcp + TCP_CSUM_AT, pseudo_sum(ip, len - start, PROTOCOL_TCP));
    put_header(header, NEEDS_CSUM, GSO_TCPV4, start + TCP_LEN, mss, start, TCP_CSUM_AT);
}

static void write_udp(uint8_t *header, uint8_t *ip, size_t len, uint8_t gso, uint16_t mss)
{
    uint8_t *udp = ip + IPV4_LEN;
    size_t start = ETHERNET_LEN + IPV4_LEN;

    write_ipv4(ip, len - ETHERNET_LEN, PROTOCOL_UDP);
    put16(udp, 1024);
    put16(udp + 2, 7000);
    put16(udp + 4, len - start);
    put16(udp + UDP_CSUM_AT, 0);
    if (gso == 0) {
        put_header(header, 0, 0, 0, 0, 0, 0);
        return;
    }
    put16(udp + UDP_CSUM_AT, pseudo_sum(ip, len - start, PROTOCOL_UDP));
    put_header(header, NEEDS_CSUM, gso, start + UDP_LEN, mss, start, UDP_CSUM_AT);
}

static void write_lie(uint8_t *header, uint8_t *frame, enum frame_kind kind, size_t len)
{
    uint8_t *ip = frame + ETHERNET_LEN;

    switch (kind) {
    case FRAME_LIE_ARP_TSO:
        put16(frame + 12, 0x0806);
        memcpy(ip, (uint8_t[]){0, 1, 8, 0, 6, 4, 0, 1}, 8);
        put_header(header, NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, TCP_CSUM_AT);
        break;
    case FRAME_LIE_MSS:
        write_tcp(header, ip, len, 65535);
        break;
    default:
        write_udp(header, ip, len, 0, 0);
        put_header(header, NEEDS_CSUM, 0, 0, 0, ETHERNET_LEN, IPV4_SOURCE_AT);
        break;
    }
}

size_t frame_write(uint8_t *bytes, enum frame_kind kind, const uint8_t to[6], const uint8_t from[6], size_t len,
                   uint16_t mss)
{
    uint8_t *frame = bytes + HEADER_LEN;
    size_t headers = ETHERNET_LEN + IPV4_LEN + TCP_LEN;

    memset(bytes, 0, HEADER_LEN + len);
    if (len < headers) { /* a runt, or nearly one */
        memcpy(frame, to, len < 6 ? len : 6);
        return HEADER_LEN + len;
    }
    memcpy(frame, to, 6);
    memcpy(frame + 6, from, 6);
    put16(frame + 12, 0x0800);
    switch (kind) {
    case FRAME_PLAIN:
        write_udp(bytes, frame + ETHERNET_LEN, len, 0, 0);
        break;
    case FRAME_TSO:
        write_tcp(bytes, frame + ETHERNET_LEN, len, mss);
        break;
    case FRAME_USO:
        write_udp(bytes, frame + ETHERNET_LEN, len, GSO_UDP_L4, mss);
        break;
    case FRAME_UFO:
        write_udp(bytes, frame + ETHERNET_LEN, len, GSO_UDP, mss);
        break;
    default:
        write_lie(bytes, frame, kind, len);
        break;
    }
    return HEADER_LEN + len;
}
